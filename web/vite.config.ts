// Builds the page into `build/`; `aethernet web` adds the models.
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { gzipSync } from 'node:zlib';
import { defineConfig, type Plugin } from 'vite';

const library = dirname(createRequire(import.meta.url).resolve('onnxruntime-web'));
const { version } = JSON.parse(readFileSync(join(library, '../package.json'), 'utf-8'));
const glue = 'ort-wasm-simd-threaded.asyncify.mjs';
const runtime = `runtime-${version}/`;

// ONNX Runtime's WebAssembly, packed: 6.6 MB instead of 27. One file runs on both the
// processor and the graphics card. The service worker learns the names of all files.
function files(): Plugin {
  return {
    name: 'files',
    generateBundle(_, bundle) {
      const read = (name: string) => readFileSync(join(library, name));
      const source = gzipSync(read(glue.replace('.mjs', '.wasm')), { level: 9 });
      this.emitFile({ type: 'asset', fileName: `${runtime}wasm.bin`, source });
      this.emitFile({ type: 'asset', fileName: `${runtime}glue.mjs`, source: read(glue) });
      const names = ['icon.svg', ...Object.keys(bundle), `${runtime}wasm.bin`, `${runtime}glue.mjs`];
      const worker = bundle['sw.js'];
      if (worker?.type === 'chunk') {
        const kept = names.filter((name) => !['sw.js', 'index.html'].includes(name));
        worker.code = worker.code.replace('FILES_OF_THE_PAGE', kept.join());
      }
    },
  };
}

export default defineConfig({
  base: './',
  define: { RUNTIME: JSON.stringify(runtime) },
  plugins: [files()],
  resolve: { conditions: ['onnxruntime-web-use-extern-wasm', 'browser', 'import'] },
  worker: { format: 'es' },
  build: {
    target: 'es2022',
    outDir: 'build',
    modulePreload: false,
    assetsInlineLimit: 0,
    rollupOptions: {
      input: { main: 'index.html', sw: 'src/sw.ts' },
      output: {
        entryFileNames: ({ name }) => (name === 'sw' ? 'sw.js' : 'assets/[name]-[hash].js'),
      },
    },
  },
});
