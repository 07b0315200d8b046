// The graphics card: ONNX Runtime with WebGPU.
import * as ort from 'onnxruntime-web/webgpu';
import { fetched, threads, unpacked, type Compute } from './load';

declare const RUNTIME: string;

/** Open an ONNX file. Returns also what is kept when the card stops working. */
export async function onCard(root: string, file: string): Promise<[Compute, Promise<unknown>]> {
  ort.env.wasm.numThreads = threads();
  ort.env.wasm.wasmPaths = { mjs: `${root}${RUNTIME}card.mjs` };
  ort.env.wasm.wasmBinary ??= await unpacked(`${root}${RUNTIME}card.bin`);
  const session = await ort.InferenceSession.create(await fetched(root + file), { executionProviders: ['webgpu'] });
  const compute: Compute = async (input, height, width) => {
    const shape = [1, input.length / height / width, height, width];
    const { output } = await session.run({ input: new ort.Tensor(input, shape) });
    return (await output.getData()) as Float32Array;
  };
  return [compute, (await ort.env.webgpu.device).lost];
}
