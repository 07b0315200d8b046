// Builds the page into `build/`; `aethernet web` adds the models.
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { deflateSync } from 'node:zlib';
import { defineConfig, type Plugin } from 'vite';

const library = dirname(createRequire(import.meta.url).resolve('onnxruntime-web'));
const { version } = JSON.parse(readFileSync(join(library, '../package.json'), 'utf-8'));
const runtime = `runtime-${version}/`;
const name = 'ort-wasm-simd-threaded.asyncify';

// ONNX Runtime's WebAssembly with WebGPU, packed: 7 MB instead of 27.
function files(): Plugin {
  return {
    name: 'files',
    generateBundle() {
      const read = (name: string) => readFileSync(join(library, name));
      const source = deflateSync(read(`${name}.wasm`), { level: 9 });
      this.emitFile({ type: 'asset', fileName: `${runtime}card.bin`, source });
      this.emitFile({ type: 'asset', fileName: `${runtime}card.mjs`, source: read(`${name}.mjs`) });
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
    license: { fileName: 'licenses.md' },
    rollupOptions: {
      input: { main: 'index.html', sw: 'src/sw.ts' },
      output: {
        entryFileNames: ({ name }) => (name === 'sw' ? 'sw.js' : 'assets/[name]-[hash].js'),
      },
    },
  },
});
