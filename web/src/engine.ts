// ONNX Runtime: a model on the graphics card or on the processor.
import * as ort from 'onnxruntime-web/webgpu';
import { checkPicture, Refusal, type Device, type Model } from './model';
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
const MOST_ON_GPU = 2 ** 27;
const MOST_ON_PROCESSOR = 2 ** 25;

/** Threads that pay: processors of more than four often count each core twice. */
function threads(): number {
  const all = navigator.hardwareConcurrency || 1;
  if (!crossOriginIsolated) return 1;
  return all <= 4 ? all : Math.min(Math.ceil(all / 2), 8);
}

async function fetched(url: string): Promise<Response> {
  const response = await fetch(url);
  if (!response.ok) throw new Refusal(`A file of this page is missing: ${url}`);
  return response;
}

/** Prepare the library; `root` is the address of the page. */
export async function prepare(root: string): Promise<void> {
  const { wasm } = ort.env;
  wasm.numThreads = threads();
  wasm.wasmPaths = { mjs: `${root}${RUNTIME}glue.mjs` };
  const packed = await (await fetched(`${root}${RUNTIME}wasm.bin`)).arrayBuffer();
  const magic = new Uint8Array(packed, 0, 2);
  if (magic[0] !== 0x1f || magic[1] !== 0x8b) wasm.wasmBinary = packed; // the server unpacked it
  else {
    const unpacked = new Blob([packed]).stream().pipeThrough(new DecompressionStream('gzip'));
    wasm.wasmBinary = await new Response(unpacked).arrayBuffer();
  }
}

/** Open a model on the best device that computes it correctly. */
export async function open(
  root: string,
  model: Model,
  device: Device,
  lost: () => void,
): Promise<{ engine: Engine; notes: string[] }> {
  const notes: string[] = [];
  const adapter =
    device === 'wasm' ? null : await navigator.gpu?.requestAdapter({ powerPreference: 'high-performance' });
  if (device === 'webgpu' && !adapter) notes.push('This browser offers no graphics card.');
  const ways: (() => Promise<Engine>)[] = [];
  if (adapter) {
    const { maxBufferSize, maxStorageBufferBindingSize } = adapter.limits;
    const bytes = Math.min(maxBufferSize, maxStorageBufferBindingSize, MOST_ON_GPU);
    const card = [adapter.info?.vendor, adapter.info?.architecture].filter(Boolean).join(' ');
    const name = (precision: string) => `Graphics card (${[card, precision].filter(Boolean).join(', ')})`;
    const { half, file } = model;
    if (half && adapter.features.has('shader-f16'))
      ways.push(() => session(root, half, model, 'webgpu', name('float16'), bytes));
    ways.push(() => session(root, file, model, 'webgpu', name('float32'), bytes));
  }
  const count = threads();
  const processor = `Processor (${count} ${count > 1 ? 'threads' : 'thread'})`;
  ways.push(() => session(root, model.file, model, 'wasm', processor, MOST_ON_PROCESSOR));
  for (const way of ways) {
    try {
      const engine = await way();
      await check(engine, model);
      if (engine.describe !== processor) void watch(lost);
      return { engine, notes };
    } catch (error) {
      if (way === ways[ways.length - 1]) throw error;
      notes.push(`The graphics card is not used: ${(error as Error).message}`);
    }
  }
  throw new Error('unreachable');
}

async function watch(lost: () => void): Promise<void> {
  const device = (await ort.env.webgpu.device) as unknown as GPUDeviceLike;
  await device.lost;
  lost();
}

interface GPUDeviceLike {
  lost: Promise<unknown>;
}

async function session(
  root: string,
  file: string,
  model: Model,
  provider: 'webgpu' | 'wasm',
  describe: string,
  bytes: number,
): Promise<Engine> {
  const content = await (await fetched(root + file)).arrayBuffer();
  const made = await ort.InferenceSession.create(content, { executionProviders: [provider] });
  return {
    describe,
    most: largestWindow(bytes, model.widest),
    async run(planes, height, width) {
      const results: Float32Array[] = [];
      const size = height * width * model.scale ** 2;
      for (let first = 0; first < planes.length; first += model.channels) {
        const input = new Float32Array(model.channels * height * width);
        for (let c = 0; c < model.channels; c++) input.set(planes[first + c], c * height * width);
        const tensor = new ort.Tensor('float32', input, [1, model.channels, height, width]);
        const output = (await made.run({ input: tensor })).output;
        const values = (await output.getData()) as Float32Array;
        for (let c = 0; c < model.channels; c++) results.push(values.subarray(c * size, (c + 1) * size));
      }
      return results;
    },
  };
}

/** Compare the result for a small picture with that of the network. */
async function check(engine: Engine, model: Model): Promise<void> {
  const [planes, side] = checkPicture(model.channels);
  const results = await engine.run(planes, side, side);
  const expected = Uint8Array.from(atob(model.check), (c) => c.charCodeAt(0));
  const size = results[0].length;
  for (let i = 0; i < expected.length; i++) {
    const value = Math.min(Math.max(results[Math.floor(i / size)][i % size], 0), 1) * 255;
    if (!(Math.abs(value - expected[i]) <= 1))
      throw new Refusal('its result for a small picture is wrong.');
  }
}
