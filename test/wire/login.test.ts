/** Logins on both sides: methods, pass-through, password files, TLS, and what a client is told when it cannot stay. */
import { readFileSync, writeFileSync } from 'node:fs';
import net from 'node:net';
import t from 'tap';
import { startup, Version } from '../../src/protocol/encode.ts';
import { Authority } from '../fixtures/certificates.ts';
import { RawClient, sqlstates } from '../fixtures/raw.ts';
import { startRelay } from '../fixtures/relay.ts';
import { connect, startProxy, temporaryFile, until, withPostgres } from '../fixtures/stack.ts';

const authority = new Authority();
const path = (name: string) => authority.path(name);
authority.issue('server', '/CN=localhost');
authority.issue('client', '/CN=plain');

const postgres = await withPostgres({
  hba: 'host all postgres 127.0.0.1/32 trust\nhost all md5user 127.0.0.1/32 md5\nhost all all 127.0.0.1/32 scram-sha-256\n',
});
const admin = await connect(postgres.port);
await admin.query(`
  CREATE ROLE plain LOGIN PASSWORD 'plain password';
  CREATE ROLE verified LOGIN PASSWORD 'verified password';
  SET password_encryption = md5;
  CREATE ROLE md5user LOGIN PASSWORD 'md5 password';
  RESET password_encryption`);
const { rows: stored } = await admin.query<{ name: string; secret: string }>(
  'SELECT rolname AS name, rolpassword AS secret FROM pg_authid WHERE rolpassword IS NOT NULL',
);
const secrets = new Map(stored.map(({ name, secret }) => [name, secret]));
const userlist = temporaryFile(
  'userlist.txt',
  `"plain" "plain password"\n"verified" "${secrets.get('verified')}"\n"md5user" "${secrets.get('md5user')}"\n"stale" "${secrets.get('verified')}"\n`,
);

t.teardown(async () => {
  await admin.end();
  await postgres.stop();
  userlist.remove();
  authority.remove();
});

for (const method of ['scram-sha-256', 'md5'] as const) {
  t.test(
    `method ${method}: the right password is let in, any other is not, and unknown users look the same`,
    async (t) => {
      const proxy = await startProxy(postgres.port, { top: { auth: { method, users: userlist.path } } });
      t.teardown(() => proxy.stop());
      const logIn = async (user: string, password: string) => {
        const client = await connect(proxy.port, { user, password });
        const { rows } = await client.query('SELECT current_user AS me');
        await client.end();
        return rows;
      };
      t.same(await logIn('plain', 'plain password'), [{ me: 'plain' }]);
      t.same(await logIn('verified', 'verified password'), [{ me: 'verified' }], 'SCRAM pass-through');
      if (method === 'md5') t.same(await logIn('md5user', 'md5 password'), [{ me: 'md5user' }]);
      for (const user of ['plain', 'verified', 'nobody']) {
        await t.rejects(logIn(user, 'wrong'), {
          code: '28P01',
          message: `password authentication failed for user "${user}"`,
        });
      }
      t.equal(proxy.bugs(), 0);
    },
  );
}

t.test('trust with a userlist lets only its users in', async (t) => {
  const proxy = await startProxy(postgres.port, { top: { auth: { method: 'trust', users: userlist.path } } });
  t.teardown(() => proxy.stop());
  await t.rejects(connect(proxy.port, { user: 'stranger' }), { code: '28000' });
  const client = await connect(proxy.port, { user: 'plain' });
  t.same((await client.query('SELECT 1 AS one')).rows, [{ one: 1 }]);
  await client.end();
});

t.test('a verifier that differs from the server’s is told so, and hurts nobody else', async (t) => {
  await admin.query(`CREATE ROLE stale LOGIN PASSWORD 'verified password'`);
  const proxy = await startProxy(postgres.port, {
    top: { auth: { method: 'scram-sha-256', users: userlist.path }, listen: { loginTimeout: '2s' } },
  });
  t.teardown(() => proxy.stop());
  await t.rejects(connect(proxy.port, { user: 'stale', password: 'verified password' }), { code: /57P03|28000/ });
  const client = await connect(proxy.port, { user: 'verified', password: 'verified password' });
  await client.end();
});

t.test('a forced user logs in with its password file, which is read again when the password has changed', async (t) => {
  const file = temporaryFile('password', 'old password\n');
  t.teardown(file.remove);
  await admin.query(`CREATE ROLE forced LOGIN PASSWORD 'old password'`);
  const proxy = await startProxy(postgres.port, {
    database: { user: 'forced', passwordFile: file.path },
    pool: { size: 2 },
  });
  t.teardown(() => proxy.stop());
  const client = await connect(proxy.port, { user: 'anyone' });
  t.same((await client.query('SELECT current_user AS me')).rows, [{ me: 'forced' }]);
  await admin.query(`ALTER ROLE forced PASSWORD 'new password'`);
  writeFileSync(file.path, 'new password');
  await admin.query(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'forced'`);
  await until(() => proxy.app.snapshot().pools[0]!.serverCount === 0, 'the lost server to be noticed');
  t.same((await client.query('SELECT current_user AS me')).rows, [{ me: 'forced' }]);
  await client.end();
});

t.test('a database that does not exist is said by the server, one that no key names by the proxy', async (t) => {
  const proxy = await startProxy(postgres.port);
  t.teardown(() => proxy.stop());
  await t.rejects(connect(proxy.port, { database: 'nonesuch' }), {
    code: '3D000',
    message: 'database "nonesuch" does not exist',
  });
  const named = await startProxy(postgres.port, {
    top: { databases: { app: { hosts: [`127.0.0.1:${postgres.port}`], dbname: 'postgres' } } },
  });
  t.teardown(() => named.stop());
  await t.rejects(connect(named.port, { database: 'other' }), { code: '3D000' });
  const client = await connect(named.port, { database: 'app' });
  t.same((await client.query('SELECT current_database() AS name')).rows, [{ name: 'postgres' }]);
  await client.end();
});

t.test('TLS towards clients, with and without a certificate of theirs', async (t) => {
  const tls = { cert: path('server.pem'), key: path('server.key'), ca: path('ca.pem') };
  const ca = readFileSync(path('ca.pem'), 'utf8');
  const proxy = await startProxy(postgres.port, { top: { listen: { tls: { mode: 'require', ...tls } } } });
  t.teardown(() => proxy.stop());
  await t.rejects(connect(proxy.port), { code: '28000', message: 'TLS is required' });
  const client = await connect(proxy.port, { ssl: { ca, host: 'localhost' } });
  t.same((await client.query('SELECT repeat($1, 300000) AS long', ['x'])).rows, [{ long: 'x'.repeat(300_000) }]);
  await client.end();
  const strict = await startProxy(postgres.port, { top: { listen: { tls: { mode: 'verify-full', ...tls } } } });
  t.teardown(() => strict.stop());
  await t.rejects(connect(strict.port, { ssl: { ca, host: 'localhost' } }));
  const own = { cert: readFileSync(path('client.pem'), 'utf8'), key: readFileSync(path('client.key'), 'utf8') };
  await t.rejects(
    connect(strict.port, { ssl: { ca, host: 'localhost', ...own } }),
    { code: '28000' },
    'a certificate for another user',
  );
  const forged = authority.forge('/CN=postgres');
  await t.rejects(
    connect(strict.port, { ssl: { ca, host: 'localhost', ...forged } }),
    { code: '28000' },
    'signed by nobody',
  );
  t.equal(proxy.bugs() + strict.bugs(), 0);
});

t.test('bytes stuffed in before the TLS handshake are refused', async (t) => {
  const proxy = await startProxy(postgres.port, {
    top: { listen: { tls: { mode: 'prefer', cert: path('server.pem'), key: path('server.key') } } },
  });
  t.teardown(() => proxy.stop());
  const client = new RawClient(proxy.port);
  client.write(Buffer.from([0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f]), Buffer.from('stuffed'));
  t.same(sqlstates(await client.closed()), ['08P01']);
});

t.test('TLS towards the server: required, verified, and refused when it is not there', async (t) => {
  const secure = await withPostgres({
    hba: 'hostssl all all 127.0.0.1/32 trust\nhost all plainly 127.0.0.1/32 trust\n',
    files: {
      'server.crt': readFileSync(path('server.pem'), 'utf8'),
      'server.key': readFileSync(path('server.key'), 'utf8'),
    },
    settings: { ssl: 'on' },
  });
  t.teardown(() => secure.stop());
  for (const mode of ['prefer', 'require', 'verify-ca', 'verify-full']) {
    const proxy = await startProxy(secure.port, {
      database: {
        hosts: [`localhost:${secure.port}`],
        tls: { mode, ca: path('ca.pem') },
        control: { user: 'postgres' },
      },
    });
    const client = await connect(proxy.port);
    const roles = () => [...proxy.app.snapshot().clusters[0]!.roles.values()].map(({ role }) => role);
    await until(() => roles()[0] === 'primary', `the control user to get in by TLS, ${mode}`);
    t.same(
      (await client.query('SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()')).rows,
      [{ ssl: true }],
      mode,
    );
    await client.end();
    await proxy.stop();
  }
  const untrusting = await startProxy(secure.port, {
    database: { tls: { mode: 'verify-ca' } },
    top: { listen: { loginTimeout: '1s' } },
  });
  t.teardown(() => untrusting.stop());
  await t.rejects(connect(untrusting.port), { code: '57P03' });
  const plain = await startProxy(postgres.port, {
    database: { tls: { mode: 'require' } },
    top: { listen: { loginTimeout: '1s' } },
  });
  t.teardown(() => plain.stop());
  await t.rejects(connect(plain.port), { code: '57P03', detail: /does not offer TLS/ });
});

t.test('names are UTF-8 on both sides, and nobody becomes somebody else by one', async (t) => {
  const trusting = await withPostgres();
  t.teardown(() => trusting.stop());
  const admin = await connect(trusting.port);
  await admin.query('CREATE ROLE "köln" LOGIN');
  await admin.query('CREATE DATABASE "größe"');
  await admin.end();
  const proxy = await startProxy(trusting.port);
  t.teardown(() => proxy.stop());
  const client = await connect(proxy.port, { user: 'köln', database: 'größe' });
  const { rows } = await client.query('SELECT current_user AS me, current_database() AS here');
  t.same(rows, [{ me: 'köln', here: 'größe' }]);
  await client.end();
  // Cut to their low bytes these letters are "postgres".
  await t.rejects(connect(proxy.port, { user: 'ŰůųŴŧŲťų' }), { code: '28000', message: /does not exist/ });
  t.equal(proxy.bugs(), 0);
});

t.test('what a startup packet says twice or half', async (t) => {
  const proxy = await startProxy(postgres.port);
  t.teardown(() => proxy.stop());
  const login = async (more: Record<string, string>) => {
    const client = new RawClient(proxy.port);
    client.write(startup(Version.v3_0, Object.entries({ user: 'postgres', database: 'postgres', ...more })));
    const messages = await client.until('Z', 1, ['E']);
    const code = messages.at(-1)?.type === 'Z' ? 'in' : sqlstates(messages)[0];
    client.end();
    return code;
  };
  for (const name of ['user', 'database', 'replication', 'options', 'USER'])
    t.equal(await login({ options: `-c ${name}=x`, replication: 'true' }), '22023', name);
  for (const text of ['fals', 'of', 'n', '0', 'off', 'FALSE']) {
    t.equal(await login({ replication: text }), 'in', `replication=${text} is an ordinary session`);
  }
  t.equal(proxy.app.snapshot().replications, 0);
  for (const text of ['o', 'x', '', '2']) t.equal(await login({ replication: text }), '22023', `replication=${text}`);
  t.equal(await login({ replication: 'true', database: 'pgweir' }), '0A000', 'the console replicates nothing');
});

t.test('a server that lets us in without proof is not believed', async (t) => {
  // A fake: no Postgres would.
  const message = (type: string, body: Buffer) => {
    const head = Buffer.from(`${type}0000`);
    head.writeInt32BE(body.length + 4, 1);
    return Buffer.concat([head, body]);
  };
  const fake = net.createServer((socket) => {
    socket.once('data', () => {
      socket.write(message('R', Buffer.from('\0\0\0\x0aSCRAM-SHA-256\0\0', 'latin1')));
      socket.once('data', () =>
        socket.write(Buffer.concat([message('R', Buffer.alloc(4)), message('Z', Buffer.from('I'))])),
      );
    });
    socket.on('error', () => {});
  });
  await new Promise<void>((done) => fake.listen(0, '127.0.0.1', done));
  t.teardown(() => fake.close());
  const file = temporaryFile('password', 'secret');
  t.teardown(file.remove);
  const proxy = await startProxy((fake.address() as net.AddressInfo).port, {
    database: { user: 'postgres', passwordFile: file.path },
    top: { listen: { loginTimeout: '1s' } },
  });
  t.teardown(() => proxy.stop());
  await t.rejects(connect(proxy.port), { code: '57P03', detail: /has not proved/ });
});

t.test('a client that waits for the first server is let in although a reload retires its pool', async (t) => {
  const waiting: (() => void)[] = [];
  const front = await startRelay(t, postgres.port, (_, link) =>
    !link.isFirst ? false : new Promise<void>((go) => waiting.push(go)),
  );
  const users: Record<string, unknown> = {};
  const proxy = await startProxy(front, { top: { users } });
  t.after(() => proxy.stop());
  const client = RawClient.open(proxy.port);
  await until(() => waiting.length === 1, 'the login of the server');
  const [pool] = proxy.app.snapshot().pools;
  users.postgres = { pool: { size: 3 } };
  t.same(proxy.app.reload(), []);
  // Another pool is looked at right after those that were retired.
  const other = RawClient.open(proxy.port);
  await until(() => waiting.length === 2, 'the login of another');
  const kept = proxy.app.snapshot().pools[0]!;
  t.not(kept, pool);
  const { usedAt } = kept;
  await until(() => kept.usedAt > usedAt, 'a tick');
  for (const go of waiting) go();
  for (const each of [await client, await other]) {
    t.same(await each.rows('SELECT 7'), [['7']]);
    each.end();
  }
  t.equal(proxy.bugs(), 0);
});

t.test('who sends a cancel request and stays is shown the door', async (t) => {
  const proxy = await startProxy(postgres.port, { top: { listen: { clientsMax: 2 } } });
  t.teardown(() => proxy.stop());
  const request = Buffer.alloc(16);
  for (const [at, value] of [16, 80877102, 1, 2].entries()) request.writeInt32BE(value, 4 * at);
  const sockets = Array.from({ length: 20 }, () => net.connect(proxy.port, '127.0.0.1'));
  for (const socket of sockets)
    socket
      .on('error', () => {})
      .resume()
      .write(request);
  await until(() => sockets.every(({ readableEnded }) => readableEnded), 'the end of all');
  const half = sockets.map((socket) => socket.end());
  await until(() => proxy.app.snapshot().open === 0, 'no socket open');
  t.equal(half.length, 20);
  t.equal(proxy.bugs(), 0);
});
