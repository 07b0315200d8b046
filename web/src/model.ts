// The models, as `aethernet web` lists them.

/** A place in the memory, in bytes, and a count of numbers of 32 bits. */
export type Place = [start: number, count: number];

/** How a processor computes a model; `src/aethernet/publish/page_model.py` writes it. */
export interface Program {
  /** What the threads tell each other. */
  words: Place;
  weights: Place;
  maps: Place;
  image: number;
  result: number;
  /** Scratch of the first thread, and how far it is to that of the next. */
  scratch: number;
  each: number;
  /** Of the weights: numbers that are kept in float16, and those that lie mixed. */
  halves: number;
  mixed: number;
  /** Rows of a picture that kernels take together. */
  tileRows: number;
  /** Calls of kernels, with numbers and with names of what the page fills in. */
  steps: [string, ...(number | string)[]][][];
}

/** An entry of models.json; `src/aethernet/publish/web.py` writes it. */
export interface Model {
  name: string;
  scale: number;
  /** Of its input and output: 3, or 1 for gray. */
  channels: number;
  /** Pixels along each side of the largest window. */
  most: Record<'card' | 'processor', number>;
  /** The ONNX file with float32 arithmetic, and the one with float16 arithmetic. */
  file: string;
  half: string | null;
  /** For the processor: kernels, best first; packed weights, and how they are used. */
  kernels: [string, string];
  weights: string;
  program: Program;
  /** A small square picture and its result: channels x rows x columns, 8 bits, in base64. */
  check: [string, string];
}

export type Device = 'auto' | 'webgpu' | 'wasm';

/** An error whose message is for the visitor. It keeps its name on the way from a worker. */
export const refusal = (message: string) => new DOMException(message, 'Refusal');
