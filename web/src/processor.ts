// The processor: AetherNet's own kernels in WebAssembly, in threads that share memory.
// `src/aethernet/publish/page_model.py` writes the weights and the calls; the memory is
// laid out as in `src/aethernet/runtimes/native/library.py`.
import { fetched, threads, unpacked, type Compute } from './load';
import type { Argument, Model } from './model';

/** What a thread has to know. */
export interface Share {
  module: WebAssembly.Module;
  memory: WebAssembly.Memory;
  model: Model;
  /** Pixels along each side of the largest picture. */
  most: number;
  /** Of this thread, and of all. */
  thread: number;
  threads: number;
}

type Kernel = (...words: (number | bigint)[]) => bigint;

const [PAGE, MOST_PAGES, STACK, EDGES] = [2 ** 16, 2 ** 14, 2 ** 14, 16]; // `build.py` says the same of the memory
// Numbers that the threads share: at a barrier, the size of the picture, and the row
// after those that are taken, for each step.
const [ROUND, WAITING, HEIGHT, WIDTH, TAKEN] = [0, 1, 2, 3, 4];

/** Open a model; the calling thread works, too. */
export async function onProcessor(root: string, model: Model, most: number): Promise<Compute> {
  const { halves, singles, steps } = model.program;
  const content = await unpacked(root + model.weights);
  const module = await compiled(root, model);
  const memory = new WebAssembly.Memory({ initial: 16, maximum: MOST_PAGES, shared: true });
  const share = { module, memory, model, most, thread: 0, threads: threads() };
  const { words, work, barrier, weights, tables, image, result, maps } = await join(share);
  const at = (place: number, count: number) => new Float32Array(memory.buffer, place, count);
  const [floats, bits] = [at(weights, halves + singles), new Uint32Array(memory.buffer, weights, halves)];
  new Uint16Array(content, 0, halves).forEach((value, i) => {
    bits[i] = ((value & 0x8000) << 16) | ((value & 0x7fff) << 13);
    floats[i] *= 2 ** 112; // the exponents' biases differ so much
  });
  floats.set(new Float32Array(content.slice(2 * halves)), halves);
  for (const { place, count } of tables) {
    const arrays = at(place, EDGES * count);
    arrays.slice().forEach((value, i) => (arrays[(i % EDGES) * count + Math.floor(i / EDGES)] = value));
  }
  await Promise.all(Array.from({ length: share.threads - 1 }, (_, i) => helper({ ...share, thread: i + 1 })));
  return async (input, height, width) => {
    if (words[HEIGHT] !== height || words[WIDTH] !== width) at(maps, (image - maps) / 4).fill(0);
    at(image, input.length).set(input);
    words.set([height, width, ...steps.map(() => 0)], HEIGHT);
    barrier();
    work();
    return at(result, input.length * model.scale ** 2).slice();
  };
}

/** The kernels with multiply-adds in one instruction, where the browser has them. */
async function compiled(root: string, { kernels: [best, plain] }: Model): Promise<WebAssembly.Module> {
  const content = await fetched(root + best);
  return WebAssembly.compile(WebAssembly.validate(content) ? content : await fetched(root + plain));
}

/** Start another thread: this script, in a worker of its own that ends with this one. */
function helper(share: Share): Promise<void> {
  return new Promise((resolve, reject) => {
    const worker = new Worker(location.href, { type: 'module' });
    worker.onmessage = () => resolve();
    worker.onerror = () => reject(new Error('a thread does not start.'));
    worker.postMessage({ kind: 'help', share });
  });
}

/** What a helper does: its part of every picture. Never returns once it is ready. */
export async function help(share: Share, ready: () => void): Promise<void> {
  const { work, barrier } = await join(share);
  ready();
  for (;;) {
    barrier();
    work();
  }
}

/** One thread's instance of the kernels. The same places for all, but stack and scratch. */
async function join({ module, memory, model, most, thread, threads }: Share) {
  const { exports } = await WebAssembly.instantiate(module, { env: { memory } });
  const { halves, singles, margin, groups, steps } = model.program;
  const kernel = (name: string) => exports[`aether_${name}_page`] as Kernel;
  const [lanes, pixels, tileRows, tile, line] = [0n, 1n, 2n, 3n, 4n].map((i) => Number(kernel('constant')(i)));
  let end = (exports.__heap_base as WebAssembly.Global).value as number;
  const take = (bytes: number) => {
    const at = Math.ceil(end / 64) * 64;
    end = at + bytes;
    return at;
  };
  const shared = take(4 * (TAKEN + steps.length));
  const weights = take(4 * (halves + singles));
  const row = (most + margin) * lanes;
  const map = 4 * ((margin + groups.map * (most + margin) + pixels) * row + (2 * margin + pixels) * lanes);
  const [a, b] = [take(map), take(map)];
  const image = take(4 * model.channels * most ** 2);
  const result = take(4 * model.channels * (most * model.scale) ** 2);
  const patch = 3 * groups.image * (line + 2 + pixels);
  const scratch = 4 * lanes * Math.max(tile * groups.tile, patch + 2 * (line + pixels));
  const own = Array.from({ length: threads }, () => take(STACK + scratch))[thread] + STACK;
  const tables: Record<'table' | 'place' | 'count', number>[] = [];
  const prepared = (argument: Argument) => {
    if (typeof argument === 'string') return argument; // it depends on the picture
    if (typeof argument === 'number') return BigInt(argument);
    const [section, value, count] = argument;
    if (section === 'float') return value;
    const place = weights + 4 * (section === 'half' ? value : halves + value);
    if (!count) return place;
    const table = take(4 * EDGES);
    tables.push({ table, place, count });
    return table;
  };
  const calls = steps.map((step) => step.map(([name, ...rest]) => ({ run: kernel(name), rest: rest.map(prepared) })));
  memory.grow(Math.max(Math.ceil((end - memory.buffer.byteLength) / PAGE), 0));
  (exports.__stack_pointer as WebAssembly.Global).value = own;
  const words = new Int32Array(memory.buffer, shared, TAKEN + steps.length);
  for (const { table, place, count } of tables)
    new Int32Array(memory.buffer, table, EDGES).forEach((_, i, all) => (all[i] = place + 4 * i * count));

  /** Wait for all threads. */
  const barrier = () => {
    const round = Atomics.load(words, ROUND);
    if (Atomics.add(words, WAITING, 1) < threads - 1) {
      while (Atomics.load(words, ROUND) === round) Atomics.wait(words, ROUND, round);
      return;
    }
    Atomics.store(words, WAITING, 0);
    Atomics.add(words, ROUND, 1);
    Atomics.notify(words, ROUND);
  };

  /** Take rows of each step until there are none. */
  const work = () => {
    const [height, width] = words.subarray(HEIGHT, TAKEN);
    const row = (width + margin) * lanes;
    const [plane, corner] = [(height + margin) * row, 4 * margin * (row + lanes)];
    const numbers = { row, plane, height, width, left: 0, right: width };
    const known: Record<string, number | bigint> = { a: a + corner, b: b + corner, image, result, scratch: own };
    for (const [name, value] of Object.entries(numbers)) known[name] = BigInt(value);
    const rows = Math.max(Math.floor(Math.ceil(height / 8 / threads) / tileRows), 1) * tileRows;
    calls.forEach((step, i) => {
      for (let y; (y = Atomics.add(words, TAKEN + i, rows)) < height; ) {
        [known.top, known.bottom] = [BigInt(y), BigInt(Math.min(y + rows, height))];
        for (const { run, rest } of step) run(...rest.map((word) => (typeof word === 'string' ? known[word] : word)));
      }
      barrier();
    });
  };
  return { words, work, barrier, weights, tables, image, result, maps: a };
}
