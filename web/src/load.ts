// What every engine needs: files of the page, and the count of threads.
import { Refusal } from './model';

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
  if (!response.ok) throw new Refusal(`A file of this page is missing: ${url}`);
  return response.arrayBuffer();
}

/** A file that is packed by gzip, unless the server has unpacked it. */
export async function unpacked(url: string): Promise<ArrayBuffer> {
  const packed = await fetched(url);
  const [first, second] = new Uint8Array(packed, 0, 2);
  if (first !== 0x1f || second !== 0x8b) return packed;
  const content = new Blob([packed]).stream().pipeThrough(new DecompressionStream('gzip'));
  return new Response(content).arrayBuffer();
}
