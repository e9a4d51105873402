/** protocol/frame: any chunking of the same bytes yields the same frames, and bad lengths are told before anything is kept. */
import fc from 'fast-check';
import t from 'tap';
import { message } from '../../src/protocol/encode.ts';
import { emptyFrame, FrameReader, type Wants } from '../../src/protocol/frame.ts';

const frame = emptyFrame();

/** Reads `stream` in chunks cut at `cuts`; gives the messages, put together from their pieces. */
function read(stream: Buffer, cuts: readonly number[], wants: Wants): { type: number; bytes: string; first: number }[] {
  const reader = new FrameReader(wants, 1 << 20);
  const messages: { type: number; bytes: string; first: number }[] = [];
  const edges = [...new Set([0, ...cuts.map((cut) => cut % (stream.length + 1)), stream.length])].sort((a, b) => a - b);
  for (let at = 1; at < edges.length; at++) {
    reader.push(stream.subarray(edges[at - 1], edges[at]));
    while (reader.next(frame) === 'frame') {
      const piece = frame.source.toString('latin1', frame.start, frame.end);
      if (frame.isStart) messages.push({ type: frame.type, bytes: piece, first: piece.length });
      else messages.at(-1)!.bytes += piece;
    }
  }
  return messages;
}

const messages = fc.array(fc.tuple(fc.constantFrom(0x51, 0x42, 0x64), fc.uint8Array({ maxLength: 300 })), {
  maxLength: 20,
});

t.test('any chunking of the same bytes yields the same messages', async (t) => {
  fc.assert(
    fc.property(messages, fc.array(fc.nat(), { maxLength: 30 }), fc.nat(400), (list, cuts, wanted) => {
      const sent = list.map(([type, body]) => message(type, Buffer.from(body)));
      const got = read(Buffer.concat(sent), cuts, () => wanted);
      t.equal(got.length, sent.length);
      for (const [index, { bytes, first, type }] of got.entries()) {
        t.equal(bytes, sent[index]!.toString('latin1'));
        t.equal(type, sent[index]![0]);
        if (first < Math.min(wanted, bytes.length)) t.fail(`${first} bytes seen at once, ${wanted} wanted`);
      }
    }),
    { numRuns: 200 },
  );
});

t.test('a length below 4 or above the limit is told at once, held or not', async (t) => {
  for (const length of [0, 3, 0x7fffffff, 0xffffffff]) {
    for (const split of [0, 1, 3, 5]) {
      const bytes = Buffer.from([0x51, 0, 0, 0, 0, 0]);
      bytes.writeUInt32BE(length, 1);
      const reader = new FrameReader((_, size) => size, 1 << 20);
      let found = 'starved';
      for (const chunk of [bytes.subarray(0, split), bytes.subarray(split)]) {
        reader.push(chunk);
        if (found === 'starved') found = reader.next(frame);
      }
      t.equal(found, length < 4 ? 'badLength' : 'tooLong', `length ${length}, split at ${split}`);
    }
  }
});

t.test('what is held grows with what has arrived, not with what a length claims', async (t) => {
  const reader = new FrameReader((_, size) => size, 1 << 30);
  const before = process.memoryUsage().arrayBuffers;
  reader.push(Buffer.from([0x51, 0x20, 0, 0, 0, 0x41]));
  t.equal(reader.next(frame), 'starved');
  t.equal(reader.pending, 6);
  t.ok(process.memoryUsage().arrayBuffers - before < 100_000);
});

t.test('what was not cut can be taken back for another protocol', async (t) => {
  const reader = new FrameReader((_, size) => size, 1 << 20);
  reader.push(Buffer.concat([message(0x70, 'x'), Buffer.from('tail')]));
  t.equal(reader.next(frame), 'frame');
  t.equal(reader.rest().toString(), 'tail');
});
