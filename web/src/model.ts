// The models, as `aethernet web` lists them, and what the page and its worker say to
// each other.

/** An entry of models.json; `src/aethernet/publish/web.py` writes it. */
export interface Model {
  name: string;
  scale: number;
  /** Of its input and output: 3, or 1 for gray. */
  channels: number;
  /** Values per pixel of the picture in its largest tensor. */
  widest: number;
  /** The ONNX file with float32 arithmetic, and the one with float16 arithmetic. */
  file: string;
  half: string | null;
  /** A small square picture and its result: channels x rows x columns, 8 bits, in base64. */
  check: [string, string];
}

export type Device = 'auto' | 'webgpu' | 'wasm';

export type Ask =
  | { kind: 'load'; model: Model; device: Device; root: string }
  | { kind: 'upscale'; file: Blob }
  | { kind: 'encode'; picture: Blob; type: string };

export type Tell =
  | { kind: 'loading' | 'failed'; text: string }
  | { kind: 'loaded'; engine: string; notes: string[] }
  | { kind: 'progress'; done: number }
  | { kind: 'done'; picture: Blob; width: number; height: number; notes: string[] }
  | { kind: 'encoded'; picture: Blob }
  | { kind: 'lost' };

/** Largest result in megapixels. */
export const MOST_MEGAPIXELS = 100;

/** An error whose message is for the visitor. */
export class Refusal extends Error {}
