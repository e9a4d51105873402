/** Rules of auth.hba at work: addresses, TLS, groups of the database, certificates with maps, reload, and failed logins. */
import { writeFileSync } from 'node:fs';
import t from 'tap';
import { Authority } from '../fixtures/certificates.ts';
import { connect, startProxy, temporaryFile, until, withPostgres } from '../fixtures/stack.ts';

const authority = new Authority();
const server = authority.issue('server', '/CN=localhost');
authority.issue('shop', '/CN=shop.example');
const postgres = await withPostgres();
t.after(async () => {
  await postgres.stop();
  authority.remove();
});
const admin = await connect(postgres.port);
await admin.query(`
  CREATE ROLE staff; CREATE ROLE juniors; GRANT staff TO juniors;
  CREATE ROLE anna LOGIN; CREATE ROLE bert LOGIN; GRANT juniors TO anna`);
await admin.end();
const users = temporaryFile('users.txt', '"anna" "secret"\n"bert" "secret"\n"postgres" "secret"\n');
const hba = temporaryFile('hba.conf', '');
const ident = temporaryFile('ident.conf', 'sites "shop.example" bert\n');
t.after(() => {
  for (const file of [users, hba, ident]) file.remove();
});
const start = (rules: string, auth: object = {}) => {
  writeFileSync(hba.path, rules);
  return startProxy(postgres.port, {
    database: { control: { user: 'postgres' } },
    top: {
      listen: { tls: { mode: 'prefer', ...server, ca: authority.path('ca.pem') } },
      auth: { method: 'hba', hba: hba.path, ident: ident.path, users: users.path, ...auth },
    },
  });
};
const ca = authority.read('ca.pem');
const ssl = { ca, host: 'localhost' };
const own = { ...ssl, cert: authority.read('shop.pem'), key: authority.read('shop.key') };

t.test('rules by address, encryption, group and certificate', async (t) => {
  const proxy = await start(`
host    second all   all          reject
hostssl all    bert  127.0.0.1/32 cert map=sites
host    all    +staff 127.0.0.0/8 scram-sha-256
host    all    postgres 10.0.0.0/8 trust
`);
  t.teardown(() => proxy.stop());
  const login = async (options: object) => {
    const client = await connect(proxy.port, options);
    const { rows } = await client.query('SELECT current_user AS me');
    await client.end();
    return rows[0].me as string;
  };
  await until(async () => {
    try {
      return (await login({ user: 'anna', password: 'secret' })) === 'anna';
    } catch (thrown) {
      if ((thrown as { code?: string }).code === '57P03') return false; // Who is in the group is being asked.
      throw thrown;
    }
  }, 'a member of a member of the group');
  await t.rejects(login({ user: 'anna', password: 'wrong' }), { code: '28P01' });
  await t.rejects(login({ user: 'anna', password: 'secret', database: 'second' }), {
    code: '28000',
    message: /^pg_hba\.conf rejects connection for host "127\.0\.0\.1", user "anna", database "second", no encryption/,
  });
  await t.rejects(login({ user: 'postgres' }), {
    code: '28000',
    message: /^no pg_hba\.conf entry for host "127\.0\.0\.1"/,
  });
  await t.rejects(login({ user: 'bert', password: 'secret' }), { code: '28000' }, 'bert needs TLS');
  await t.rejects(login({ user: 'bert', password: 'secret', ssl }), {
    code: '28000',
    message: /valid client certificate/,
  });
  t.equal(await login({ user: 'bert', ssl: own }), 'bert', 'by the map');
  writeFileSync(hba.path, 'host all all 127.0.0.1/32 trust\n');
  t.same(proxy.app.reload(), []);
  t.equal(await login({ user: 'postgres' }), 'postgres');
  writeFileSync(hba.path, 'local all all peer\n');
  t.match(proxy.app.reload(), [/hba\.conf:1:1: peer cannot be done/]);
  t.equal(await login({ user: 'postgres' }), 'postgres', 'the old rules stay');
  t.equal(proxy.bugs(), 0);
});

t.test('who guesses passwords is slowed down, and nobody else', async (t) => {
  const proxy = await start('host all all all scram-sha-256\n', { failures: { max: 3, window: '700ms' } });
  t.teardown(() => proxy.stop());
  const login = async (user: string, password: string) => (await connect(proxy.port, { user, password })).end();
  await login('anna', 'secret');
  for (let each = 0; each < 3; each++) await t.rejects(login('bert', 'wrong'), { code: '28P01' });
  await t.rejects(login('bert', 'secret'), {
    code: '28000',
    message: /^too many logins from this address have failed/,
  });
  for (let each = 0; each < 3; each++) await t.rejects(login('nobody', 'secret'), { code: '28P01' });
  await t.rejects(
    login('nobody', 'secret'),
    { code: '28000', message: /^too many logins/ },
    'whether there is one or not',
  );
  await login('anna', 'secret');
  await until(async () => {
    try {
      await login('bert', 'secret');
      return true;
    } catch {
      return false;
    }
  }, 'the window to be over');
  t.match(await (await fetch(`http://127.0.0.1:${proxy.opsPort}/metrics`)).text(), /pgweir_logins_refused_total [1-9]/);
});
