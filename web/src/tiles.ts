// The division of a picture into windows, as in `src/aethernet/runtimes/tiling.py`.

/** Real pixels around a tile that the network also sees. */
export const CONTEXT = 16;

/** The network sees `start` to `stop`; `keepStart` to `keepStop` is kept. */
export type Window = Record<'start' | 'stop' | 'keepStart' | 'keepStop', number>;

/** The fewest windows of one size, at most `most` pixels, that cover a side. */
export function windows(length: number, most: number): Window[] {
  if (length <= most) return [{ start: 0, stop: length, keepStart: 0, keepStop: length }];
  const count = Math.ceil((length - 2 * CONTEXT) / (most - 2 * CONTEXT));
  const size = Math.ceil((length + 2 * CONTEXT * (count - 1)) / count);
  const starts = Array.from({ length: count }, (_, i) => Math.floor((i * (length - size)) / (count - 1)));
  // Neighbours meet in the middle of their overlap.
  const meets = starts.slice(1).map((start, i) => Math.floor((start + starts[i] + size) / 2));
  const edges = [0, ...meets, length];
  return starts.map((start, i) => ({ start, stop: start + size, keepStart: edges[i], keepStop: edges[i + 1] }));
}
