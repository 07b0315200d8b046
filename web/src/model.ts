// The models, as `aethernet web` lists them, and what the page and its worker say to
// each other.

import type { Share } from './processor';

/** What a kernel is called with, as `src/aethernet/publish/page_model.py` says. */
export type Argument = string | number | [section: 'float' | 'half' | 'single', value: number, count?: number];

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
  /** For the processor: kernels, best first; packed weights, and how they are used. */
  kernels: [string, string];
  weights: string;
  program: {
    halves: number;
    singles: number;
    /** Pixels of zeros around a map. */
    margin: number;
    /** Of channels in the picture, in a map, and in a tile with the hidden ones. */
    groups: Record<'image' | 'map' | 'tile', number>;
    steps: [string, ...Argument[]][][];
  };
  /** A small square picture and its result: channels x rows x columns, 8 bits, in base64. */
  check: [string, string];
}

export type Device = 'auto' | 'webgpu' | 'wasm';

export type Ask =
  | { kind: 'load'; model: Model; device: Device; root: string }
  | { kind: 'help'; share: Share }
  | { kind: 'upscale'; file: Blob }
  | { kind: 'encode'; picture: Blob; type: string };

export type Tell =
  | { kind: 'loading' | 'failed'; text: string }
  | { kind: 'loaded'; engine: string; notes: string[] }
  | { kind: 'progress'; done: number }
  | { kind: 'done'; picture: Blob; width: number; height: number; notes: string[] }
  | { kind: 'encoded'; picture: Blob }
  | { kind: 'lost' | 'ready' };

/** Largest result in megapixels. */
export const MOST_MEGAPIXELS = 100;

/** An error whose message is for the visitor. */
export class Refusal extends Error {}
