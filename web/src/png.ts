// PNG, written piece by piece.

const TABLE = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let k = 0; k < 8; k++) n = n & 1 ? (n >>> 1) ^ 0xedb88320 : n >>> 1;
  return n;
});

function crc32(...parts: Uint8Array[]): number {
  let crc = ~0;
  for (const part of parts)
    for (let i = 0; i < part.length; i++) crc = (crc >>> 8) ^ TABLE[(crc ^ part[i]) & 255];
  return ~crc >>> 0;
}

type Bytes = Uint8Array<ArrayBuffer>;

/** A number as four bytes. */
const long = (value: number): Bytes => Uint8Array.of(value >>> 24, value >>> 16, value >>> 8, value);

/** A PNG in sRGB, of which only compressed rows are held. */
export class PngWriter {
  private readonly packer = new CompressionStream('deflate');
  private readonly writer = this.packer.writable.getWriter();
  private readonly parts: Bytes[] = [Uint8Array.of(0x89, 0x50, 0x4e, 0x47, 13, 10, 26, 10)];
  private readonly packed = new Response(this.packer.readable).arrayBuffer();
  private before: Uint8Array;

  /** `bands`: 1 gray, 2 with alpha, 3 RGB, 4 with alpha. */
  constructor(private readonly width: number, height: number, private readonly bands: number) {
    this.before = new Uint8Array(width * bands);
    const kind = [0, 0, 4, 2, 6][bands];
    this.chunk('IHDR', Uint8Array.of(...long(width), ...long(height), 8, kind, 0, 0, 0));
    this.chunk('sRGB', Uint8Array.of(0));
  }

  private chunk(name: string, data: Bytes): void {
    const type = Uint8Array.from(name, (c) => c.charCodeAt(0));
    this.parts.push(long(data.length), type, data, long(crc32(type, data)));
  }

  /** Append rows of `width * bands` bytes. */
  async write(rows: Uint8ClampedArray): Promise<void> {
    const [length, bands] = [this.width * this.bands, this.bands];
    const count = rows.length / length;
    const filtered = new Uint8Array(count * (length + 1));
    for (let y = 0; y < count; y++) {
      const row = rows.subarray(y * length, (y + 1) * length);
      const [to, up] = [y * (length + 1) + 1, this.before];
      filtered[to - 1] = 4; // Paeth's prediction
      for (let i = 0; i < length; i++) {
        const a = i < bands ? 0 : row[i - bands];
        const c = i < bands ? 0 : up[i - bands];
        const [da, db, dc] = [Math.abs(up[i] - c), Math.abs(a - c), Math.abs(a + up[i] - 2 * c)];
        filtered[to + i] = row[i] - (da <= db && da <= dc ? a : db <= dc ? up[i] : c);
      }
      this.before = new Uint8Array(row);
    }
    await this.writer.write(filtered);
  }

  async finish(): Promise<Blob> {
    await this.writer.close();
    this.chunk('IDAT', new Uint8Array(await this.packed));
    this.chunk('IEND', new Uint8Array(0));
    return new Blob(this.parts, { type: 'image/png' });
  }
}
