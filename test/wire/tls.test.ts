/**
 * TLS on both sides in all its modes: libpq's sslmode against ours, TLS without SSLRequest, certificates that are rotated, revoked or
 * chosen by name, sessions resumed, SCRAM bound to the certificate, and ours towards a real Postgres.
 */
import { copyFileSync } from 'node:fs';
import type net from 'node:net';
import tls from 'node:tls';
import t from 'tap';
import { startup, Version } from '../../src/protocol/encode.ts';
import { Authority } from '../fixtures/certificates.ts';
import { cleanEnvironment, findProgram, run, skip } from '../fixtures/drivers/programs.ts';
import { connect, startProxy, temporaryFile, until, withPostgres } from '../fixtures/stack.ts';

const authority = new Authority();
const server = authority.issue('server', '/CN=localhost');
const anna = authority.issue('anna', '/CN=anna');
const secrets = { ...server, ca: authority.path('ca.pem') };
const ca = authority.read('ca.pem');

/** Takes passwords by SCRAM only, and TLS only. */
const postgres = await withPostgres({
  hba: 'hostssl all postgres 127.0.0.1/32 trust\nhostssl all all 127.0.0.1/32 scram-sha-256\n',
  files: { 'server.crt': authority.read('server.pem'), 'server.key': authority.read('server.key') },
  settings: { ssl: 'on' },
});
t.after(async () => {
  await postgres.stop();
  authority.remove();
});
const toServer = { hosts: [`localhost:${postgres.port}`], tls: { mode: 'require' } };
const admin = await connect(postgres.port, { ssl: { ca, host: 'localhost' } });
await admin.query(`CREATE ROLE anna LOGIN PASSWORD 'secret'`);
await admin.end();
const users = temporaryFile('users.txt', '"anna" "secret"\n"postgres" ""\n');
t.after(() => users.remove());

/** A startup packet within TLS, and what comes back: R for an authentication request. */
function greet(socket: tls.TLSSocket): Promise<string> {
  return new Promise((resolve, reject) => {
    socket.once('error', reject).once('close', () => resolve('closed'));
    socket.once('data', (chunk: Buffer) => resolve(chunk.toString('latin1', 0, 1)));
    socket.write(startup(Version.v3_0, Object.entries({ user: 'anna', database: 'postgres' })));
  });
}

/** TLS from the first byte. */
function direct(port: number, options: tls.ConnectionOptions): Promise<tls.TLSSocket> {
  return new Promise((resolve, reject) => {
    const socket = tls.connect({ host: '127.0.0.1', port, ca, servername: 'localhost', ...options });
    socket.once('error', reject).once('secureConnect', () => resolve(socket));
  });
}

t.test('sslmode of libpq against modes of ours', async (t) => {
  const psql = findProgram('psql');
  if (psql === null) return skip(t, 'psql', 'postgresql-client');
  const ask = async (port: number, sslmode: string, more = '') => {
    const target = `host=127.0.0.1 port=${port} user=anna dbname=postgres sslmode=${sslmode} sslrootcert=${secrets.ca} ${more}`;
    const { code, stdout, stderr } = await run(psql, ['-XAt', target, '-c', `SELECT 'in'`], {
      env: cleanEnvironment({ PGPASSWORD: 'secret' }),
    });
    return code === 0 && stdout.trim() === 'in' ? 'in' : stderr;
  };
  const own = `sslcert=${anna.cert} sslkey=${anna.key}`;
  for (const [mode, refused] of [
    ['disable', ['require', 'verify-ca', 'verify-full']],
    ['allow', []],
    ['prefer', []],
    ['require', ['disable']],
    ['verify-ca', ['disable']],
    ['verify-full', ['disable']],
  ] as const) {
    const proxy = await startProxy(postgres.port, {
      database: toServer,
      top: { listen: { tls: { mode, ...secrets } }, auth: { users: users.path } },
    });
    for (const sslmode of ['disable', 'allow', 'prefer', 'require', 'verify-ca', 'verify-full']) {
      const answer = await ask(proxy.port, sslmode, own);
      const isRefused = (refused as readonly string[]).includes(sslmode);
      if (isRefused) t.match(answer, /TLS is required|does not support SSL/, `${sslmode} against ${mode} is refused`);
      else t.equal(answer, 'in', `${sslmode} against ${mode}`);
    }
    if (mode.startsWith('verify'))
      t.match(await ask(proxy.port, 'require', 'sslcert=none'), /certificate/, `${mode} without one`);
    if (mode === 'prefer') {
      t.equal(await ask(proxy.port, 'require', 'channel_binding=require'), 'in', 'SCRAM-SHA-256-PLUS');
      t.match(await ask(proxy.port, 'disable', 'channel_binding=require'), /channel binding/);
    }
    t.equal(proxy.bugs(), 0);
    await proxy.stop();
  }
});

t.test('TLS without SSLRequest', async (t) => {
  const proxy = await startProxy(postgres.port, {
    database: toServer,
    top: { listen: { tls: { mode: 'prefer', ...secrets } }, auth: { users: users.path } },
  });
  t.teardown(() => proxy.stop());
  const socket = await direct(proxy.port, { ALPNProtocols: ['postgresql'] });
  t.equal(socket.alpnProtocol, 'postgresql');
  t.equal(await greet(socket), 'R');
  socket.destroy();
  const nameless = await direct(proxy.port, {});
  t.equal(await greet(nameless), 'E', 'without ALPN it is refused');
  await t.rejects(direct(proxy.port, { ALPNProtocols: ['http/1.1'] }), 'another protocol');
  const client = await connect(proxy.port, {
    user: 'anna',
    password: 'secret',
    ssl: { ca, host: 'localhost', ALPNProtocols: ['postgresql'] },
    sslnegotiation: 'direct',
  } as object);
  t.same((await client.query('SELECT 1 AS one')).rows, [{ one: 1 }], 'node-postgres');
  await client.end();
  const plain = await startProxy(postgres.port, { database: toServer });
  t.teardown(() => plain.stop());
  await t.rejects(direct(plain.port, { ALPNProtocols: ['postgresql'] }), 'where there is no TLS');
  t.equal(proxy.bugs() + plain.bugs(), 0);
});

t.test('versions, ciphers, names and sessions', async (t) => {
  const other = authority.issue('other', '/CN=other', 'DNS:other.example');
  const proxy = await startProxy(postgres.port, {
    database: toServer,
    top: {
      listen: { tls: { mode: 'require', ...secrets, minVersion: 'TLSv1.3', names: { 'other.example': other } } },
      auth: { users: users.path },
    },
  });
  t.teardown(() => proxy.stop());
  const options = { ALPNProtocols: ['postgresql'] };
  await t.rejects(direct(proxy.port, { ...options, maxVersion: 'TLSv1.2' }), { code: /PROTOCOL_VERSION/ });
  const named = await direct(proxy.port, { ...options, servername: 'other.example' });
  t.equal(named.getPeerCertificate().subject.CN, 'other');
  named.destroy();
  const first = await direct(proxy.port, options);
  t.equal(first.getPeerCertificate().subject.CN, 'localhost');
  const ticket = new Promise<Buffer>((resolve) => first.once('session', resolve));
  await greet(first);
  const second = await direct(proxy.port, { ...options, session: await ticket });
  t.ok(second.isSessionReused(), 'a session is resumed');
  t.equal(await greet(second), 'R');
  first.destroy();
  second.destroy();
  const old = await startProxy(postgres.port, {
    database: toServer,
    top: {
      listen: { tls: { mode: 'require', ...secrets, ciphers: 'ECDHE-RSA-AES256-GCM-SHA384' } },
      auth: { users: users.path },
    },
  });
  t.teardown(() => old.stop());
  const chosen = await direct(old.port, { ...options, maxVersion: 'TLSv1.2' });
  t.equal(chosen.getCipher().name, 'ECDHE-RSA-AES256-GCM-SHA384');
  chosen.destroy();
});

t.test('certificates are rotated without dropping a session, and a bad file changes nothing', async (t) => {
  for (const end of ['cert', 'key'] as const) copyFileSync(server[end], authority.path(`live.${end}`));
  const live = { cert: authority.path('live.cert'), key: authority.path('live.key') };
  const proxy = await startProxy(postgres.port, {
    database: toServer,
    top: { listen: { tls: { mode: 'require', ...live } }, auth: { method: 'trust' } },
  });
  t.teardown(() => proxy.stop());
  const ssl = { ca, host: 'localhost' };
  const client = await connect(proxy.port, { ssl });
  const next = authority.issue('next', '/CN=next');
  for (const end of ['cert', 'key'] as const) copyFileSync(next[end], live[end]);
  t.same(proxy.app.reload(), []);
  t.same((await client.query('SELECT 1 AS one')).rows, [{ one: 1 }], 'the session goes on');
  const socket = await direct(proxy.port, { ALPNProtocols: ['postgresql'] });
  t.equal(socket.getPeerCertificate().subject.CN, 'next');
  socket.destroy();
  copyFileSync(server.key, live.key);
  t.match(proxy.app.reload(), [/key values mismatch/]);
  await (await connect(proxy.port, { ssl })).end();
  await client.end();
});

t.test('certificates that were revoked', async (t) => {
  authority.issue('lost', '/CN=anna');
  authority.revoke('lost');
  const proxy = await startProxy(postgres.port, {
    database: toServer,
    top: {
      listen: { tls: { mode: 'verify-full', ...secrets, crl: authority.path('crl.pem') } },
      auth: { method: 'cert' },
    },
  });
  t.teardown(() => proxy.stop());
  const ssl = (name: string) => ({
    ca,
    host: 'localhost',
    cert: authority.read(`${name}.pem`),
    key: authority.read(`${name}.key`),
  });
  await t.rejects(connect(proxy.port, { user: 'anna', ssl: ssl('lost') }), { code: '28000', message: /revoked/ });
  await t.rejects(connect(proxy.port, { user: 'postgres', ssl: ssl('anna') }), { code: '28000' });
  t.equal(proxy.bugs(), 0);
});

t.test('towards the server: without SSLRequest, bound to its certificate, and with one of ours', async (t) => {
  const open = (more: object) =>
    startProxy(postgres.port, {
      database: {
        ...toServer,
        user: 'anna',
        passwordFile: password.path,
        // Files are beside the configuration, and nothing else of it is one.
        tls: { mode: 'verify-full', ca: 'ca.pem', ...more },
      },
      file: authority.path('pgweir.yaml'),
      top: { listen: { loginTimeout: '2s' } },
    });
  const password = temporaryFile('password', 'secret\n');
  t.teardown(() => password.remove());
  const version = (await (async () => {
    const client = await connect(postgres.port, { ssl: { ca, host: 'localhost' } });
    const { rows } = await client.query('SHOW server_version_num');
    await client.end();
    return Number(rows[0].server_version_num);
  })()) as number;
  for (const more of [
    { channelBinding: 'require' },
    { channelBinding: 'disable' },
    { minVersion: 'TLSv1.3' },
    ...(version >= 170_000 ? [{ negotiation: 'direct', channelBinding: 'require' }] : []),
  ]) {
    const proxy = await open(more);
    const client = await connect(proxy.port, { user: 'whoever' });
    const { rows } = await client.query('SELECT current_user AS me, ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()');
    t.same(rows, [{ me: 'anna', ssl: true }], JSON.stringify(more));
    await client.end();
    await proxy.stop();
  }
  // One that answers a handshake, and does not speak Postgres: a fake, because Postgres before 17 would only hang up.
  const fake = tls.createServer({ cert: authority.read('server.pem'), key: authority.read('server.key') });
  await new Promise<void>((done) => fake.listen(0, '127.0.0.1', done));
  t.teardown(() => fake.close());
  const { port } = fake.address() as net.AddressInfo;
  const lost = await startProxy(port, {
    database: { hosts: [`localhost:${port}`], tls: { mode: 'require', negotiation: 'direct' } },
    top: { listen: { loginTimeout: '1s' } },
  });
  t.teardown(() => lost.stop());
  await t.rejects(connect(lost.port), { code: '57P03' });
  await until(() => lost.log.some((line) => /tls\.negotiation|alert/.test(line)), 'why, in the log');
  t.equal(lost.bugs(), 0);
});

t.test('a certificate that nothing can be bound to', async (t) => {
  const psql = findProgram('psql');
  if (psql === null) return skip(t, 'psql', 'postgresql-client');
  const edwards = authority.forge('/CN=localhost', 'ed25519');
  const files = [temporaryFile('cert.pem', edwards.cert), temporaryFile('key.pem', edwards.key)] as const;
  t.teardown(() => {
    for (const file of files) file.remove();
  });
  const proxy = await startProxy(postgres.port, {
    database: toServer,
    top: { listen: { tls: { mode: 'require', cert: files[0].path, key: files[1].path } }, auth: { users: users.path } },
  });
  t.teardown(() => proxy.stop());
  const target = `host=127.0.0.1 port=${proxy.port} user=anna dbname=postgres sslmode=require`;
  const env = cleanEnvironment({ PGPASSWORD: 'secret' });
  const { stdout, stderr } = await run(psql, ['-XAt', target, '-c', `SELECT 'in'`], { env });
  t.equal(stdout.trim(), 'in', stderr);
});

t.test('nobody may negotiate again', async (t) => {
  const proxy = await startProxy(postgres.port, {
    database: toServer,
    top: { listen: { tls: { mode: 'require', ...secrets } }, auth: { users: users.path } },
  });
  t.teardown(() => proxy.stop());
  const socket = await direct(proxy.port, { ALPNProtocols: ['postgresql'], maxVersion: 'TLSv1.2' });
  t.equal(await greet(socket), 'R');
  const refused = await new Promise((resolve) => {
    socket.on('error', resolve);
    socket.renegotiate({}, resolve);
  });
  t.ok(refused, 'renegotiation is refused');
  socket.destroy();
  t.equal(proxy.bugs(), 0);
});
