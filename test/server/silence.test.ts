/** Servers that say nothing: which of them are closed. */
import t from 'tap';
import { Silence } from '../../src/server/silence.ts';
import { portsIn } from '../../src/util/unacknowledged.ts';

function start({ isThere = true, deaf = [] as number[] } = {}) {
  let checks = 0;
  const state = { isThere };
  const silence = new Silence(async () => new Set(deaf));
  const check = async () => {
    checks++;
    if (!state.isThere) throw new Error('nobody is there');
  };
  const servers = [1, 2].map((localPort) => ({
    localPort,
    since: 0,
    reason: '',
    silentFor(now: number) {
      return now - this.since;
    },
    close(reason: string) {
      this.reason = reason;
    },
  }));
  /** Each 200 ms, as the pools do. */
  const run = async (from: number, to: number) => {
    for (let now = from; now <= to; now += 200) {
      for (const server of servers) if (server.reason === '') silence.watch(server, now, check);
      silence.tick(now);
      await new Promise((done) => setImmediate(done));
    }
  };
  return { silence, servers, run, state, checks: () => checks };
}

t.test('a host that can be logged in to is thinking', async (t) => {
  const { servers, run, checks, silence } = start();
  await run(0, 60_000);
  t.same(
    servers.map(({ reason }) => reason),
    ['', ''],
  );
  t.equal(checks(), 2, 'it is not asked all the time');
  t.equal(silence.closed, 0);
});

t.test('nobody is there: what is silent is closed', async (t) => {
  const { servers, run, silence } = start({ isThere: false });
  servers[1]!.since = 9_000; // It has spoken a moment ago.
  await run(0, 10_400);
  t.same(
    servers.map(({ reason }) => reason !== ''),
    [true, false],
  );
  await run(10_600, 20_400);
  t.match(servers[1]!.reason, /its host does not answer/);
  t.equal(silence.closed, 2);
});

t.test('others of the host are heard: only a connection that nobody acknowledges is closed', async (t) => {
  const { silence, servers, run, checks } = start({ isThere: false, deaf: [2] });
  for (let now = 0; now < 30_000; now += 1_000) {
    silence.heard(now);
    await run(now, now + 800);
  }
  t.same(
    servers.map(({ reason }) => reason),
    ['', 'the server is silent, and what was sent to it is not acknowledged'],
  );
  t.equal(checks(), 0);
});

t.test('which connections send in vain, from /proc/net/tcp', (t) => {
  const table = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1538 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0
   1: 0100007F:B2C4 0100007F:1538 01 0000001B:00000000 01:00000112 00000006     0        0 2 2 0 100 0 0 10 0
   2: 0100007F:B2C6 0100007F:1538 01 0000001B:00000000 01:00000112 00000001     0        0 2 2 0 100 0 0 10 0
   3: 0100007F:B2C8 0100007F:1538 01 00000000:00000000 02:00000112 00000009     0        0 2 2 0 100 0 0 10 0
`;
  t.same(portsIn(table), [0xb2c4]);
  t.same(portsIn(''), []);
  t.end();
});
