// A model on the graphics card or on the processor.
import { threads, type Compute } from './load';
import { Refusal, type Device, type Model } from './model';
import { onProcessor } from './processor';
import { largestWindow } from './tiles';

export interface Engine {
  describe: string;
  /** Largest window along each side. */
  most: number;
  /** Planes of any number, height x width, 0..1, to the same at `scale` times the size. */
  run(planes: Float32Array[], height: number, width: number): Promise<Float32Array[]>;
}

// Of the largest tensor, in bytes; the kernels for the processor never hold a whole one.
const [MOST_ON_CARD, MOST_ON_PROCESSOR] = [2 ** 27, 2 ** 26];

type Start = (most: number) => Promise<[Compute, Promise<unknown>?]>;

/**
 * Open a model on the best device that computes it correctly.
 * `root` is the address of the page. Returns what went wrong before, too.
 */
export async function open(root: string, model: Model, device: Device, lost: () => void): Promise<[Engine, string[]]> {
  const notes: string[] = [];
  const ways: [string, number, Start][] = [];
  const fast = { powerPreference: 'high-performance' } as const;
  const adapter = device === 'wasm' ? null : await navigator.gpu?.requestAdapter(fast);
  if (device === 'webgpu' && !adapter) notes.push('This browser offers no graphics card.');
  if (adapter) {
    const onCard = async (file: string) => (await import('./card')).onCard(root, file);
    const { maxBufferSize, maxStorageBufferBindingSize } = adapter.limits;
    const bytes = Math.min(maxBufferSize, maxStorageBufferBindingSize, MOST_ON_CARD);
    const card = `${adapter.info?.vendor ?? ''} ${adapter.info?.architecture ?? ''}`.trim() || 'unnamed';
    const { file, half } = model;
    if (half && adapter.features.has('shader-f16'))
      ways.push([`Graphics card (${card}, float16)`, bytes, () => onCard(half)]);
    ways.push([`Graphics card (${card}, float32)`, bytes, () => onCard(file)]);
  }
  const processor = `Processor (${threads()} ${threads() > 1 ? 'threads' : 'thread'})`;
  const withoutCard: Start = async (most) => [await onProcessor(root, model, most)];
  ways.push([processor, MOST_ON_PROCESSOR, withoutCard]);
  for (const [describe, bytes, start] of ways) {
    try {
      const most = largestWindow(bytes, model.widest);
      const [compute, stopped] = await start(most);
      const engine = { describe, most, run: runner(compute, model.channels) };
      await check(engine, model);
      void stopped?.then(lost);
      return [engine, notes];
    } catch (error) {
      if (start === withoutCard) throw error;
      notes.push(`${describe} is not used: ${(error as Error).message}`);
    }
  }
  throw new Error('there is always a processor');
}

function runner(compute: Compute, channels: number): Engine['run'] {
  return async (planes, height, width) => {
    const results: Float32Array[] = [];
    for (let first = 0; first < planes.length; first += channels) {
      const input = new Float32Array(channels * height * width);
      for (let c = 0; c < channels; c++) input.set(planes[first + c], c * height * width);
      const values = await compute(input, height, width);
      const step = values.length / channels;
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
