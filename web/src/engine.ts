// A model on the graphics card or on the processor.
import { threads, type Compute } from './load';
import { refusal, type Device, type Model } from './model';
import { onProcessor } from './processor';

export type Engine = Awaited<ReturnType<typeof open>>;

/**
 * Open a model on the best device that computes it correctly. `root` is the address of the page.
 * Returns also the largest window along each side, and what went wrong before.
 */
export async function open(root: string, model: Model, device: Device, lost: () => void) {
  const notes: string[] = [];
  const files: [string, string][] = [];
  const gpu = device === 'wasm' ? null : navigator.gpu;
  const adapter = await gpu?.requestAdapter({ powerPreference: 'high-performance' });
  if (device === 'webgpu' && !adapter) notes.push('This browser offers no graphics card.');
  if (adapter && model.half && adapter.features.has('shader-f16')) files.push(['float16', model.half]);
  if (adapter) files.push(['float32', model.file]);
  const card = `${adapter?.info?.vendor ?? ''} ${adapter?.info?.architecture ?? ''}`.trim() || 'unnamed';
  for (const [precision, file] of files) {
    const describe = `Graphics card (${card}, ${precision})`;
    try {
      const [compute, stopped] = await (await import('./card')).onCard(root, file);
      await check(compute, model);
      void stopped.then(lost);
      return { model, describe, most: model.most.card, compute, notes };
    } catch (error) {
      notes.push(`${describe} is not used: ${(error as Error).message}`);
    }
  }
  const compute = await onProcessor(root, model);
  await check(compute, model);
  const describe = `Processor (${threads()} ${threads() > 1 ? 'threads' : 'thread'})`;
  return { model, describe, most: model.most.processor, compute, notes };
}

/** Compare the result for a small picture with that of the network. */
async function check(compute: Compute, { check, channels }: Model): Promise<void> {
  const [given, expected] = check.map((text) => Float32Array.from(atob(text), (c) => c.charCodeAt(0) / 255));
  const side = Math.sqrt(given.length / channels);
  const values = await compute(given, side, side);
  const right = (value: number, i: number) => Math.abs(Math.min(Math.max(value, 0), 1) - expected[i]) <= 1 / 255;
  if (!values.every(right)) throw refusal('The result for a small picture is wrong.');
}
