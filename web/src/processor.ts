// The processor: AetherNet's own kernels in WebAssembly, in threads that share memory.
// `src/aethernet/publish/page_model.py` lays out the memory and writes the calls.
import { connect } from './calls';
import { fetched, threads, unpacked, type Compute } from './load';
import type { Model, Program } from './model';
import type { Work } from './worker';

/** What all threads have to know. */
export interface Share {
  module: WebAssembly.Module;
  memory: WebAssembly.Memory;
  program: Program;
  threads: number;
}

const [PAGE, EDGES] = [2 ** 16, 16];
// Numbers that the threads share: how often one has come to a barrier, the size of the
// picture, and the row after those that are taken, for each step.
const [MET, HEIGHT, WIDTH, TAKEN] = [0, 1, 2, 3];

/** Open a model; the calling thread works, too. */
export async function onProcessor(root: string, { kernels, weights, program, scale }: Model): Promise<Compute> {
  const content = await unpacked(root + weights);
  const module = await compiled(root, kernels);
  const pages = Math.ceil((program.scratch + threads() * program.each) / PAGE);
  const memory = new WebAssembly.Memory({ initial: pages, maximum: pages, shared: true });
  const share = { module, memory, program, threads: threads() };
  const { words, barrier, work } = await join(share, 0);
  unpack(content, share);
  const helper = () => connect<Work>(new Worker(location.href, { type: 'module' }));
  await Promise.all(Array.from({ length: threads() - 1 }, (_, i) => helper().help(share, i + 1)));
  return async (input, height, width) => {
    if (words[HEIGHT] !== height || words[WIDTH] !== width) new Float32Array(memory.buffer, ...program.maps).fill(0);
    new Float32Array(memory.buffer, program.image).set(input);
    words.set([height, width, ...program.steps.map(() => 0)], HEIGHT);
    barrier();
    work();
    return new Float32Array(memory.buffer, program.result, input.length * scale ** 2).slice();
  };
}

/** The kernels with multiply-adds in one instruction, where the browser has them. */
async function compiled(root: string, [best, plain]: [string, string]): Promise<WebAssembly.Module> {
  const content = await fetched(root + best);
  return WebAssembly.compile(WebAssembly.validate(content) ? content : await fetched(root + plain));
}

/** Put the weights into the memory, in float32. */
function unpack(content: ArrayBuffer, { memory, program: { weights, halves, mixed } }: Share): void {
  const [floats, bits] = [new Float32Array(memory.buffer, ...weights), new Int32Array(memory.buffer, ...weights)];
  new Int16Array(content, 0, halves).forEach((value, i) => {
    bits[i] = (value << 13) & 0x8fffffff; // sign, exponent and mantissa in their places
    floats[i] *= 2 ** 112; // the exponents' biases differ so much
  });
  floats.set(new Float32Array(content, 2 * halves), halves);
  // The kernels of the edges: the first number of each, then the second.
  const place = (i: number) => (i % EDGES) * (mixed / EDGES) + Math.floor(i / EDGES);
  floats.slice(0, mixed).forEach((value, i) => (floats[place(i)] = value));
}

/** What a helper does: its part of every picture. It answers that it is ready, then nothing more. */
export async function help(share: Share, thread: number): Promise<void> {
  const { barrier, work } = await join(share, thread);
  setTimeout(() => {
    for (;;) {
      barrier();
      work();
    }
  });
}

/** One thread's instance of the kernels. */
async function join({ module, memory, program, threads }: Share, thread: number) {
  const { exports } = await WebAssembly.instantiate(module, { env: { memory } });
  const kernels = exports as Record<string, (...words: unknown[]) => void>;
  const words = new Int32Array(memory.buffer, ...program.words);
  const scratch = program.scratch + thread * program.each;
  (exports.__stack_pointer as WebAssembly.Global).value = scratch; // the stack lies before it

  let expected = 0;
  /** Wait for all threads. */
  const barrier = () => {
    expected += threads;
    if (Atomics.add(words, MET, 1) + 1 === expected) Atomics.notify(words, MET);
    for (let met; (met = Atomics.load(words, MET)) < expected; ) Atomics.wait(words, MET, met);
  };

  /** Take rows of each step until there are none. */
  const work = () => {
    const [height, width] = words.subarray(HEIGHT, TAKEN);
    const rows = Math.max(Math.floor(Math.ceil(height / 8 / threads) / program.tileRows), 1) * program.tileRows;
    program.steps.forEach((step, i) => {
      for (let top; (top = Atomics.add(words, TAKEN + i, rows)) < height; ) {
        const known: Record<string, number> = { height, width, top, bottom: Math.min(top + rows, height), scratch };
        for (const [name, ...rest] of step) kernels[`aether_${name}_page`](...rest.map((word) => known[word] ?? word));
      }
      barrier();
    });
  };
  return { words, barrier, work };
}
