/** Users that the database itself knows (`auth.query`): who gets in, as whom, and when the database cannot be asked. */
import t from 'tap';
import { AuthQuery } from '../../src/client/auth-query.ts';
import { FakeClock } from '../fixtures/clock.ts';
import { startRelay } from '../fixtures/relay.ts';
import { connect, startProxy, temporaryFile, until, withPostgres } from '../fixtures/stack.ts';

t.test(
  'a storm of logins is one question; what is doubted is asked again; what was known holds while nobody answers',
  async (t) => {
    const clock = new FakeClock();
    const asked: string[] = [];
    let answer: (user: string) => Promise<string | null> = async (user) =>
      user === 'nobody' ? null : `secret of ${user}`;
    const query = new AuthQuery((database, user) => {
      asked.push(`${database}/${user}`);
      return answer(user);
    }, clock);
    const passwordOf = async (user: string) => {
      const secret = await query.find('app', user);
      return secret?.kind === 'password' ? secret.password : secret;
    };
    const storm = await Promise.all(Array.from({ length: 500 }, () => query.find('app', 'one')));
    t.equal(asked.length, 1);
    t.ok(storm.every((secret) => secret === storm[0]));
    clock.advance(59_000);
    t.equal(await passwordOf('one'), 'secret of one');
    t.equal(asked.length, 1);
    clock.advance(1_000);
    t.equal(await query.find('app', 'one'), storm[0], 'the same text is the same secret: no key is derived again');
    t.equal(asked.length, 2);

    answer = async () => 'new';
    query.doubt('app', 'one');
    t.equal(await passwordOf('one'), 'secret of one', 'not at once: guesses are no questions');
    clock.advance(1_000);
    t.equal(await passwordOf('one'), 'new');

    answer = async () => null;
    t.equal(await passwordOf('ghost'), null);
    t.equal(await passwordOf('ghost'), null);
    t.equal(asked.length, 4);
    clock.advance(5_000);
    await passwordOf('ghost');
    t.equal(asked.length, 5, 'a user may be new');

    answer = () => Promise.reject(new Error('gone'));
    clock.advance(60_000);
    t.equal(await passwordOf('one'), 'new', 'who was somebody still is');
    await t.rejects(query.find('app', 'ghost'), { message: 'gone' });
    t.equal(query.counts.failed, 2);

    answer = () => new Promise(() => {});
    for (let n = 0; n < 1_000; n++) void query.find('app', `stuck ${n}`);
    await t.rejects(query.find('app', 'one too many'), { message: /too many others/ });
  },
);

t.test('who is known is not told any sooner than who is not', async (t) => {
  const clock = new FakeClock();
  const query = new AuthQuery(() => new Promise((resolve) => clock.after(8, () => resolve('secret'))), clock);
  for (const title of ['asked', 'known']) {
    let isTold = false;
    const found = query.find('app', 'one').then(() => {
      isTold = true;
    });
    clock.advance(7);
    await new Promise(setImmediate);
    t.equal(isTold, false, title);
    clock.advance(1);
    await found;
  }
  t.equal(query.counts.asked, 1);
});

t.test('users of the server log in by their own passwords, and as themselves', async (t) => {
  const postgres = await withPostgres({
    hba: 'host all postgres 127.0.0.1/32 trust\nhost all asker 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 scram-sha-256\n',
  });
  t.teardown(() => postgres.stop());
  const admin = await connect(postgres.port);
  t.teardown(() => admin.end());
  await admin.query(`
    CREATE ROLE asker LOGIN SUPERUSER;
    CREATE ROLE app LOGIN PASSWORD 'first';
    CREATE ROLE late LOGIN PASSWORD 'late' VALID UNTIL '2001-01-01';
    CREATE ROLE barred NOLOGIN PASSWORD 'barred';
    SET password_encryption = 'md5';
    CREATE ROLE old LOGIN PASSWORD 'old';
    RESET password_encryption;
    CREATE SCHEMA evil;
    CREATE FUNCTION evil.now() RETURNS timestamptz LANGUAGE sql AS $$ SELECT '2000-01-01'::timestamptz $$;
    ALTER ROLE asker SET search_path = evil, pg_catalog;`);
  const users = temporaryFile('users', '"listed" "of the file"\n');
  t.teardown(users.remove);
  const proxy = await startProxy(postgres.port, {
    top: { auth: { method: 'scram-sha-256', users: users.path, query: { user: 'asker' }, failures: { max: 1000 } } },
  });
  t.teardown(() => proxy.stop());
  const logIn = async (user: string, password: string) => {
    const client = await connect(proxy.port, { user, password });
    try {
      return (await client.query('SELECT current_user::text AS me')).rows[0].me as string;
    } finally {
      await client.end();
    }
  };
  t.equal(await logIn('app', 'first'), 'app', 'SCRAM pass-through');
  const refused = { code: '28P01', severity: 'FATAL' };
  await t.rejects(logIn('app', 'wrong'), refused);
  await t.rejects(
    logIn('late', 'late'),
    refused,
    'a password that is not valid any more, whatever now() its search_path has',
  );
  await t.rejects(logIn('barred', 'barred'), refused);
  await t.rejects(logIn('nobody', 'x'), { ...refused, message: 'password authentication failed for user "nobody"' });
  await t.rejects(logIn('old', 'old'), refused, 'an md5 hash is no verifier');
  await t.rejects(logIn('listed', 'first'), refused, 'the file comes first');
  const elsewhere = connect(proxy.port, { user: 'app', password: 'first', database: 'no such database' });
  await t.rejects(elsewhere, refused, 'which databases there are is not for strangers');

  await admin.query("ALTER ROLE app PASSWORD 'second'");
  await t.rejects(logIn('app', 'second'), refused, 'the login that fails tells that it may have changed');
  await until(
    () =>
      logIn('app', 'second').then(
        () => true,
        () => false,
      ),
    'the new password',
  );
  await t.rejects(logIn('app', 'first'), refused);

  await admin.query('ALTER ROLE asker NOLOGIN');
  await admin.query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'asker'");
  t.equal(await logIn('app', 'second'), 'app', 'who is known is let in');
  await t.rejects(logIn('never seen', 'x'), { code: '57P03', message: /nobody can be asked/, detail: undefined });
  t.match(proxy.log.join(), /auth\.query cannot be asked/);
  t.equal(proxy.bugs(), 0);
});

t.test('a database that there is not is looked for once: the next who ask wait for as long as elsewhere', async (t) => {
  const postgres = await withPostgres();
  t.teardown(() => postgres.stop());
  let looks = 0;
  const port = await startRelay(t, postgres.port, (chunk) => {
    if (chunk.includes('no such database')) looks++;
    return false;
  });
  const users = temporaryFile('users', '');
  t.teardown(users.remove);
  const proxy = await startProxy(port, {
    top: { auth: { method: 'scram-sha-256', users: users.path, query: { user: 'postgres' }, failures: { max: 1000 } } },
  });
  t.teardown(() => proxy.stop());
  const refused = { code: '28P01', severity: 'FATAL' };
  for (const database of ['postgres', 'no such database'])
    for (const user of ['one', 'two', 'three', 'four'])
      await t.rejects(connect(proxy.port, { user, password: 'x', database }), refused);
  t.equal(looks, 1);
  t.equal(proxy.bugs(), 0);
});

t.test('method md5: hashes serve for both sides', async (t) => {
  const postgres = await withPostgres({
    hba: 'host all postgres 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 md5\n',
    settings: { password_encryption: 'md5' },
  });
  t.teardown(() => postgres.stop());
  const admin = await connect(postgres.port);
  await admin.query("CREATE ROLE old LOGIN PASSWORD 'old'");
  await admin.end();
  const proxy = await startProxy(postgres.port, {
    top: {
      auth: {
        method: 'md5',
        query: {
          user: 'postgres',
          database: 'postgres',
          sql: 'SELECT usename, passwd FROM pg_shadow WHERE usename = $1',
        },
      },
    },
  });
  t.teardown(() => proxy.stop());
  const client = await connect(proxy.port, { user: 'old', password: 'old' });
  t.equal((await client.query('SELECT current_user::text AS me')).rows[0].me, 'old');
  await client.end();
  await t.rejects(connect(proxy.port, { user: 'old', password: 'wrong' }), { code: '28P01' });
  t.equal(proxy.bugs(), 0);
});
