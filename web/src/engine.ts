// ONNX Runtime: a model on the graphics card or on the processor.
import * as ort from 'onnxruntime-web/webgpu';
import { Refusal, type Device, type Model } from './model';
import { largestWindow } from './tiles';

declare const RUNTIME: string;

export interface Engine {
  describe: string;
  /** Largest window along each side. */
  most: number;
  /** Planes of any number, height x width, 0..1, to the same at `scale` times the size. */
  run(planes: Float32Array[], height: number, width: number): Promise<Float32Array[]>;
}

// Of the largest tensor, in bytes.
const [MOST_ON_CARD, MOST_ON_PROCESSOR] = [2 ** 27, 2 ** 25];

/** Threads that pay: processors of more than four often count each core twice. */
function threads(): number {
  const all = navigator.hardwareConcurrency || 1;
  if (!crossOriginIsolated) return 1;
  return all <= 4 ? all : Math.min(Math.ceil(all / 2), 8);
}

async function fetched(url: string): Promise<ArrayBuffer> {
  const response = await fetch(url);
  if (!response.ok) throw new Refusal(`A file of this page is missing: ${url}`);
  return response.arrayBuffer();
}

/** Prepare the library; the one with WebGPU takes twice as long to load. */
async function prepare(root: string, variant: 'card' | 'processor'): Promise<void> {
  ort.env.wasm.numThreads = threads();
  ort.env.wasm.wasmPaths = { mjs: `${root}${RUNTIME}${variant}.mjs` };
  const packed = await fetched(`${root}${RUNTIME}${variant}.bin`);
  const [first, second] = new Uint8Array(packed, 0, 2);
  const isPacked = first === 0x1f && second === 0x8b; // or the server has unpacked it
  const unpacked = new Blob([packed]).stream().pipeThrough(new DecompressionStream('gzip'));
  ort.env.wasm.wasmBinary = isPacked ? await new Response(unpacked).arrayBuffer() : packed;
}

/**
 * Open a model on the best device that computes it correctly.
 * `root` is the address of the page. Returns what went wrong before, too.
 */
export async function open(root: string, model: Model, device: Device, lost: () => void): Promise<[Engine, string[]]> {
  const notes: string[] = [];
  const ways: [string, 'webgpu' | 'wasm', string, number][] = [];
  const fast = { powerPreference: 'high-performance' } as const;
  const adapter = device === 'wasm' ? null : await navigator.gpu?.requestAdapter(fast);
  if (device === 'webgpu' && !adapter) notes.push('This browser offers no graphics card.');
  await prepare(root, adapter ? 'card' : 'processor');
  if (adapter) {
    const { maxBufferSize, maxStorageBufferBindingSize } = adapter.limits;
    const bytes = Math.min(maxBufferSize, maxStorageBufferBindingSize, MOST_ON_CARD);
    const card = `${adapter.info?.vendor ?? ''} ${adapter.info?.architecture ?? ''}`.trim() || 'unnamed';
    if (model.half && adapter.features.has('shader-f16'))
      ways.push([model.half, 'webgpu', `Graphics card (${card}, float16)`, bytes]);
    ways.push([model.file, 'webgpu', `Graphics card (${card}, float32)`, bytes]);
  }
  const processor = `Processor (${threads()} ${threads() > 1 ? 'threads' : 'thread'})`;
  ways.push([model.file, 'wasm', processor, MOST_ON_PROCESSOR]);
  for (const [file, provider, describe, bytes] of ways) {
    try {
      const content = await fetched(root + file);
      const session = await ort.InferenceSession.create(content, { executionProviders: [provider] });
      const engine = { describe, most: largestWindow(bytes, model.widest), run: runner(session, model) };
      await check(engine, model);
      const used = provider === 'webgpu' ? await ort.env.webgpu.device : null;
      void used?.lost.then(lost);
      return [engine, notes];
    } catch (error) {
      if (provider === 'wasm') throw error;
      notes.push(`${describe} is not used: ${(error as Error).message}`);
    }
  }
  throw new Error('there is always a processor');
}

function runner(session: ort.InferenceSession, { channels, scale }: Model): Engine['run'] {
  return async (planes, height, width) => {
    const results: Float32Array[] = [];
    const size = height * width;
    for (let first = 0; first < planes.length; first += channels) {
      const input = new Float32Array(channels * size);
      for (let c = 0; c < channels; c++) input.set(planes[first + c], c * size);
      const { output } = await session.run({ input: new ort.Tensor(input, [1, channels, height, width]) });
      const values = (await output.getData()) as Float32Array;
      const step = size * scale ** 2;
      for (let c = 0; c < channels; c++) results.push(values.subarray(c * step, (c + 1) * step));
    }
    return results;
  };
}

/** Compare the result for a small picture with that of the network. */
async function check(engine: Engine, model: Model): Promise<void> {
  const [given, expected] = model.check.map((text) => Float32Array.from(atob(text), (c) => c.charCodeAt(0) / 255));
  const size = given.length / model.channels;
  const planes = Array.from({ length: model.channels }, (_, c) => given.subarray(c * size, (c + 1) * size));
  const values = (await engine.run(planes, Math.sqrt(size), Math.sqrt(size))).flatMap((plane) => [...plane]);
  const right = (value: number, i: number) => Math.abs(Math.min(Math.max(value, 0), 1) - expected[i]) <= 1 / 255;
  if (!values.every(right)) throw new Refusal('its result for a small picture is wrong.');
}
