// Pictures as pixels: decoded by the browser, read in strips.
import { Refusal } from './model';

export interface Picture {
  width: number;
  height: number;
  /** Whether a pixel is transparent. */
  alpha: boolean;
  /** Whether every pixel is gray. */
  gray: boolean;
  notes: string[];
  /** RGBA of rows `start` to `stop`; colours are not multiplied by alpha. */
  rows(start: number, stop: number): Promise<Uint8ClampedArray>;
  close(): void;
}

const STRIP = 2 ** 22; // pixels that are looked at together

/** Decode a picture: upright, in sRGB, 8 bits. */
export async function openPicture(file: Blob): Promise<Picture> {
  let bitmap: ImageBitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    throw new Refusal('This browser cannot read it: it is damaged, or no picture.');
  }
  const { width, height } = bitmap;
  const canvas = new OffscreenCanvas(1, 1);
  const context = canvas.getContext('2d', { willReadFrequently: true })!;
  const rows = async (start: number, stop: number) => {
    canvas.width = width; // empties it, too
    canvas.height = stop - start;
    context.drawImage(bitmap, 0, -start);
    return context.getImageData(0, 0, width, stop - start).data;
  };
  let alpha = false;
  let gray = true;
  const step = Math.max(Math.floor(STRIP / width), 1);
  for (let start = 0; start < height; start += step) {
    const data = await rows(start, Math.min(start + step, height));
    for (let i = 0; i < data.length; i += 4) {
      if (data[i] !== data[i + 1] || data[i] !== data[i + 2]) gray = false;
      if (data[i + 3] !== 255) alpha = true;
    }
  }
  const picture = { width, height, alpha, gray, notes: [] as string[], rows, close: () => bitmap.close() };
  if (!alpha) return picture;
  const exact = await unmultiplied(file);
  if (exact) {
    bitmap.close();
    return { ...picture, rows: spread(exact.rows, height, width), close: exact.close };
  }
  picture.notes.push('Colours of nearly transparent pixels are rounded: this browser has no WebGL.');
  return { ...picture, rows: spread(rows, height, width) };
}

type Rows = Picture['rows'];

/** Exact colours of transparent pixels. A 2D canvas rounds them, WebGL does not. */
async function unmultiplied(file: Blob): Promise<Pick<Picture, 'rows' | 'close'> | null> {
  const gl = new OffscreenCanvas(1, 1).getContext('webgl');
  const options = { premultiplyAlpha: 'none' } as const;
  const bitmap = await createImageBitmap(file, options);
  if (!gl || bitmap.width > gl.getParameter(gl.MAX_TEXTURE_SIZE)) return null;
  gl.bindTexture(gl.TEXTURE_2D, gl.createTexture());
  gl.bindFramebuffer(gl.FRAMEBUFFER, gl.createFramebuffer());
  const { width } = bitmap;
  return {
    async rows(start, stop) {
      const part = await createImageBitmap(bitmap, 0, start, width, stop - start, options);
      gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE, part);
      const texture = gl.getParameter(gl.TEXTURE_BINDING_2D);
      gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, texture, 0);
      const data = new Uint8ClampedArray(4 * width * (stop - start));
      gl.readPixels(0, 0, width, stop - start, gl.RGBA, gl.UNSIGNED_BYTE, new Uint8Array(data.buffer));
      part.close();
      return data;
    },
    close: () => bitmap.close(),
  };
}

// How far colours spread under transparency, as in `src/aethernet/pictures/files.py`.
const REACH = 14;
const BLUR = Array.from({ length: 2 * REACH + 1 }, (_, i) => Math.exp(-((i - REACH) ** 2) / 72));
const WHOLE = BLUR.reduce((sum, weight) => sum + weight);

/** Pixels of alpha 0 get the mean of the visible colours around them. */
function spread(rows: Rows, height: number, width: number): Rows {
  return async (start, stop) => {
    const [first, last] = [Math.max(start - REACH, 0), Math.min(stop + REACH, height)];
    const around = await rows(first, last);
    const data = around.slice((start - first) * width * 4, (stop - first) * width * 4);
    const hidden = (i: number) => data[4 * i + 3] === 0;
    if (!data.some((_, i) => i % 4 === 3 && data[i] === 0)) return data;
    // Weight and weighted colours, blurred along columns for the rows that are wanted.
    const blurred = new Float32Array(data.length);
    for (let y = start; y < stop; y++) {
      for (let k = -REACH; k <= REACH; k++) {
        const from = (Math.min(Math.max(y + k, 0), height - 1) - first) * width * 4;
        const to = (y - start) * width * 4;
        const weight = BLUR[k + REACH] / WHOLE;
        for (let i = 0; i < 4 * width; i += 4) {
          const visible = weight * around[from + i + 3];
          for (let c = 0; c < 3; c++) blurred[to + i + c] += visible * around[from + i + c];
          blurred[to + i + 3] += visible;
        }
      }
    }
    for (let i = 0; i < data.length / 4; i++) {
      if (!hidden(i)) continue;
      const [row, x, sums] = [i - (i % width), i % width, [0, 0, 0, 0]];
      for (let k = -REACH; k <= REACH; k++) {
        const from = 4 * (row + Math.min(Math.max(x + k, 0), width - 1));
        for (let c = 0; c < 4; c++) sums[c] += (BLUR[k + REACH] / WHOLE) * blurred[from + c];
      }
      if (sums[3] > 1e-3) for (let c = 0; c < 3; c++) data[4 * i + c] = sums[c] / (sums[3] + 1e-6);
    }
    return data;
  };
}
