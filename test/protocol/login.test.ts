/** protocol/scram, protocol/startup, client/users, client/cancel: the parts of a login, without sockets. */
import { randomBytes } from 'node:crypto';
import fc from 'fast-check';
import t from 'tap';
import { CancelKeys } from '../../src/client/cancel.ts';
import { md5Of, Users, verifierOf } from '../../src/client/users.ts';
import { sslRequest, startup } from '../../src/protocol/encode.ts';
import {
  deriveKeys,
  makeVerifier,
  mockVerifier,
  parseVerifier,
  ScramClient,
  ScramServer,
} from '../../src/protocol/scram.ts';
import { packetSize, parseOptions, readPacket } from '../../src/protocol/startup.ts';
import type { ServerTarget } from '../../src/server/login.ts';

async function exchange(client: ScramClient, server: ScramServer) {
  const first = server.first(client.first());
  const final = server.final(await client.final(first!));
  if (final !== null) client.verify(final.reply);
  return final;
}

t.test('SCRAM lets the right password in, and its keys in turn', async (t) => {
  const verifier = await makeVerifier('pencil');
  const done = await exchange(new ScramClient('pencil'), new ScramServer(verifier));
  t.ok(done);
  t.ok(await exchange(new ScramClient(done!.keys), new ScramServer(verifier)), 'pass-through');
  t.equal(await exchange(new ScramClient('pen'), new ScramServer(verifier)), null);
  t.equal(await exchange(new ScramClient('pencil'), new ScramServer(mockVerifier('x', randomBytes(8)))), null);
});

t.test('SCRAM bound to a certificate', async (t) => {
  const verifier = await makeVerifier('pencil');
  const [ours, another] = [randomBytes(32), randomBytes(32)];
  const run = async (client: ScramClient, server: ScramServer) => {
    const first = server.first(client.first(), client.mechanism);
    return first === null ? null : server.final(await client.final(first));
  };
  const bound = new ScramClient('pencil', ours, true);
  t.equal(bound.mechanism, 'SCRAM-SHA-256-PLUS');
  t.same(new ScramServer(verifier, ours).mechanisms, ['SCRAM-SHA-256-PLUS', 'SCRAM-SHA-256']);
  t.ok(await run(bound, new ScramServer(verifier, ours)));
  t.equal(await run(new ScramClient('pencil', another, true), new ScramServer(verifier, ours)), null, 'passed on');
  t.equal(await run(new ScramClient('pencil', ours, false), new ScramServer(verifier, ours)), null, 'talked out of it');
  t.ok(await run(new ScramClient('pencil', ours, false), new ScramServer(verifier)), 'a server that cannot');
  t.ok(await run(new ScramClient('pencil'), new ScramServer(verifier, ours)), 'a client that does not want to');
  const server = new ScramServer(verifier, ours);
  t.equal(server.first(new ScramClient('pencil').first(), 'SCRAM-SHA-256-PLUS'), null, 'n,, with -PLUS');
  t.equal(server.first(bound.first(), 'SCRAM-SHA-256'), null, 'p=… without');
});

t.test('SCRAM follows the example of RFC 7677', async (t) => {
  const salt = Buffer.from('W22ZaJ0SNY7soEsUEjb6gQ==', 'base64');
  const { serverKey } = await deriveKeys('pencil', salt, 4096);
  t.equal(serverKey.toString('base64'), 'wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=');
});

t.test('keys for another salt are refused with a reason', async (t) => {
  const keys = await deriveKeys('x', randomBytes(16), 4096);
  const server = new ScramServer(await makeVerifier('x'));
  const client = new ScramClient(keys);
  await t.rejects(client.final(server.first(client.first())!), /another SCRAM verifier/);
});

t.test('verifiers are read as Postgres writes them, and nothing else is', async (t) => {
  const text = `SCRAM-SHA-256$4096:${randomBytes(16).toString('base64')}$${randomBytes(32).toString('base64')}:${randomBytes(32).toString('base64')}`;
  t.equal(parseVerifier(text)?.iterations, 4096);
  for (const bad of [
    'md5abc',
    text.replace('4096', '0'),
    text.replace('4096', '9999999'),
    `${text}x:`,
    text.slice(0, -8),
  ]) {
    t.equal(parseVerifier(bad), null, bad);
  }
});

t.test('the userlist has PgBouncer’s format', async (t) => {
  const users = new Users(
    '; comment\n"a" "secret"\n "b""q" "md55f4dcc3b5aa765d61d8327deb882cf99" trailing\n\n"c" ""\n',
  );
  t.equal(users.size, 3);
  t.equal(md5Of(users.get('b"q')!, 'b"q'), 'md55f4dcc3b5aa765d61d8327deb882cf99');
  t.equal(verifierOf(users.get('b"q')!), null);
  t.ok(await verifierOf(users.get('a')!));
  t.equal(users.get('d'), null);
  t.throws(() => new Users('a b', 'file'), /file:1:1/);
});

t.test('a key cancels its own session and no other', async (t) => {
  const keys = new CancelKeys(3, 1);
  const cancelled: string[] = [];
  const target = {} as ServerTarget; // Nobody asks where its servers are.
  const holder = (name: string, minor: number) => ({
    key: keys.issue(minor),
    user: name,
    pool: { target },
    cancel: () => cancelled.push(name),
    end: () => {},
  });
  const a = holder('a', 0);
  keys.hold(a);
  const b = holder('b', 2);
  keys.hold(b);
  t.equal(a.key.length, 8);
  t.equal(b.key.length, 32);
  keys.request(Buffer.from(b.key, 'latin1'));
  const wrong = Buffer.from(a.key, 'latin1');
  wrong[7]! ^= 1;
  keys.request(wrong);
  keys.request(Buffer.from(b.key, 'latin1').subarray(0, 8));
  t.same(cancelled, ['b']);
  const pid = Buffer.from(b.key, 'latin1').readInt32BE(0);
  t.equal(keys.holderOf(pid), b);
  t.equal(keys.holderOf(pid ^ (1 << 18)), null, 'of another worker');
  t.equal(keys.holderOf(pid & 0x3ffff), null);
  keys.revoke(b);
  t.equal(keys.holderOf(pid), null);
  keys.request(Buffer.from(b.key, 'latin1'));
  t.same(cancelled, ['b']);
  t.same(keys.counts, { matched: 1, unknown: 3 });
});

t.test('startup packets are read as Postgres reads them', async (t) => {
  const packet = startup(0x30000, [
    ['user', 'u'],
    ['_pq_.x', '1'],
    ['options', '-c a=b'],
  ]);
  t.equal(packetSize(packet), packet.length);
  t.match(readPacket(packet), { kind: 'startup', minor: 0, negotiate: { options: ['_pq_.x'] } });
  t.match(readPacket(startup(0x30009, [['user', 'u']])), { minor: 2, negotiate: { options: [] } });
  t.match(readPacket(startup(0x30002, [['user', 'u']])), { minor: 2, negotiate: null });
  t.match(readPacket(startup(0x20000, [])), { kind: 'bad' });
  t.match(readPacket(packet.subarray(0, packet.length - 1)), { kind: 'bad' });
  t.same(readPacket(sslRequest), { kind: 'ssl' });
  t.equal(packetSize(Buffer.from([0, 0])), 0);
  for (const size of [0, 7, 10_001, 0x7fffffff, 0xffffffff]) {
    const bytes = Buffer.alloc(4);
    bytes.writeUInt32BE(size);
    t.equal(packetSize(bytes), -1, String(size));
  }
});

t.test('any bytes in place of a startup packet give an answer', async () => {
  fc.assert(
    fc.property(fc.uint8Array({ minLength: 8, maxLength: 200 }), (bytes) => {
      readPacket(Buffer.from(bytes));
    }),
  );
});

t.test('options are split as Postgres splits its command line', async (t) => {
  t.same(parseOptions('-c a=b --c-d=e\\ f  -cg=h\\\\i'), [
    ['a', 'b'],
    ['c_d', 'e f'],
    ['g', 'h\\i'],
  ]);
  t.same(parseOptions(''), []);
  for (const bad of ['-x', '-c', '-c novalue', 'word']) t.equal(parseOptions(bad), null, bad);
});
