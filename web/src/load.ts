// What every engine needs: files of the page, and the count of threads.
import { refusal } from './model';

/** Channels x height x width, one after another, to the same at `scale` times the size. */
export type Compute = (input: Float32Array, height: number, width: number) => Promise<Float32Array>;

/** Threads that pay: processors of more than four often count each core twice. */
export function threads(): number {
  const all = navigator.hardwareConcurrency || 1;
  if (!crossOriginIsolated) return 1;
  return all <= 4 ? all : Math.min(Math.ceil(all / 2), 8);
}

export async function fetched(url: string): Promise<ArrayBuffer> {
  const response = await fetch(url);
  if (!response.ok) throw refusal(`A file of this page is missing: ${url}`);
  return response.arrayBuffer();
}

/** A file that `deflate` has packed. No server unpacks that on its way, as some do with gzip. */
export async function unpacked(url: string): Promise<ArrayBuffer> {
  const content = new Blob([await fetched(url)]).stream().pipeThrough(new DecompressionStream('deflate'));
  return new Response(content).arrayBuffer();
}
