/** Rules of auth.hba: which of them fits whom, what is refused at load, and maps of certificates to users. */
import fc from 'fast-check';
import t from 'tap';
import { FailedLogins } from '../../src/client/failures.ts';
import { type Applicant, Hba } from '../../src/client/hba.ts';

const make = (text: string, ident?: string) =>
  new Hba({ name: 'hba.conf', text }, ident === undefined ? null : { name: 'ident.conf', text: ident });
const anna: Applicant = { database: 'app', user: 'anna', address: '10.1.2.3', isTls: false, isReplication: false };
const nobody = () => false;

/** The line of the rule that fits; 0: none. */
const lineFor = (
  hba: Hba,
  who: Partial<Applicant>,
  isMember: (user: string, group: string) => boolean | null = nobody,
) => {
  const rule = hba.find({ ...anna, ...who }, isMember);
  return rule === 'unknown' ? rule : (rule?.line ?? 0);
};

t.test('the first rule that fits', async (t) => {
  const hba = make(
    `
# TYPE  DATABASE  USER  ADDRESS  METHOD
local   all       all            trust
hostssl app,"a b" all   10.0.0.0/8  cert
host    app       "all" 10.0.0.0/8  md5
host    app       bert,carl 10.0.0.0 255.0.0.0 md5 # a comment
hostnossl sameuser all  0.0.0.0/0   reject
host    all       /^ro_ ::/0        scram-sha-256
host    replication all samehost    scram-sha-256
host    app       +staff all        scram-sha-256
host    app, \\
  other dora 192.168.0.0/255.255.255.0x md5
`.replace('/255.255.255.0x', '/24'),
  );
  t.equal(lineFor(hba, { address: null }), 3);
  t.equal(lineFor(hba, { isTls: true }), 4);
  t.equal(lineFor(hba, { isTls: true, database: 'a b' }), 4);
  t.equal(lineFor(hba, { user: 'all' }), 5, 'a quoted name is only a name');
  t.equal(lineFor(hba, { user: 'bert' }), 6);
  t.equal(lineFor(hba, { user: 'bert', address: '::ffff:10.9.9.9' }), 6, 'an IPv4 address as IPv6 has it');
  t.equal(lineFor(hba, { user: 'bert', address: '11.0.0.1' }), 0);
  t.equal(lineFor(hba, { user: 'app' }), 7);
  t.equal(lineFor(hba, { user: 'app', isTls: true, address: '8.8.8.8' }), 0);
  t.equal(lineFor(hba, { user: 'ro_x', address: '2001:db8::1' }), 8);
  t.equal(lineFor(hba, { user: 'ro_x' }), 0, 'IPv4 is not in an IPv6 network');
  t.equal(lineFor(hba, { isReplication: true, address: '127.0.0.1' }), 9);
  t.equal(lineFor(hba, { isReplication: true, address: '203.0.113.9' }), 0, 'all does not mean replication');
  t.equal(
    lineFor(hba, {}, (user, group) => user === 'anna' && group === 'staff'),
    10,
  );
  t.equal(
    lineFor(hba, {}, () => null),
    'unknown',
    'who may be meant waits',
  );
  t.equal(lineFor(hba, { user: 'dora', database: 'other', address: '192.168.0.7' }), 11);
  t.same(hba.groups, ['staff']);
});

t.test('what cannot be done is said with file and line', async (t) => {
  for (const [text, why] of [
    ['\nlocal all all peer', /^hba\.conf:2:1: peer cannot be done/],
    ['host all all all ident', /ident is not supported/],
    ['host all all all password', /clear text/],
    ['host all all all ldap', /ldap is not supported/],
    ['host all all all cert', /cert needs hostssl/],
    ['host all all db.example.com md5', /is not an address/],
    ['host all all 10.0.0.0 md5', /needs a prefix/],
    ['host all all 10.0.0.0/33 md5', /not a network/],
    ['host all all 10.0.0.0 255.0.255.0 md5', /not a mask/],
    ['hosts all all all md5', /is not one of local/],
    ['host all all md5', /expected database, user, address, method/],
    ['host samerole all all md5', /samerole is not supported/],
    ['host @file all all md5', /cannot be included/],
    ['include more.conf', /cannot be included/],
    ['hostssl all all all cert map=nowhere', /there is no map/],
    ['host all all all md5 clientcert=verify-full', /clientcert needs hostssl/],
    ['host all all all md5 x=y', /is not known/],
    ['host all /( all md5', /is not a pattern/],
    ['host all all 10.0.0.0/ md5', /not a network/],
    ['host all all 10.0.0.0/0/24 md5', /not a network/],
    ['host all all 10.0.0.0/8,11.0.0.0/8 reject', /only one is possible/],
    ['host all all all trust,reject', /only one is possible/],
    ['host all "all all md5', /a quote does not end/],
    ['host all all ::ffff:10.0.0.0/104 md5', /write the address as IPv4/],
  ] as const)
    t.throws(() => make(text), { message: why }, text);
  t.throws(() => make('hostssl all all all cert map=m', 'm a'), { message: /^ident\.conf:1:1: expected/ });
  t.throws(() => make('hostssl all all all cert map=m', 'm a b,c'), { message: /only one is possible/ });
  t.throws(() => make('hostssl all all all cert map=m', 'm /a \\1'), { message: /needs a pattern with a group/ });
});

t.test('maps', async (t) => {
  const hba = make(
    'hostssl all all all cert map=m clientname=DN',
    'm "/^CN=(.*),O=shop$" \\1\nm "CN=boss" all\nm boss "all"',
  );
  t.match(hba.rules[0], { clientCertificate: 'verify-full', clientName: 'DN', map: 'm' });
  t.ok(hba.maps('m', 'CN=anna,O=shop', 'anna'));
  t.notOk(hba.maps('m', 'CN=anna,O=shop', 'bert'));
  t.ok(hba.maps('m', 'CN=boss', 'anyone'));
  t.ok(hba.maps('m', 'boss', 'all'));
  t.notOk(hba.maps('m', 'boss', 'anna'), 'a quoted all is a name');
  t.notOk(hba.maps('m', 'CN=$&,O=shop', 'anna'));
  t.ok(hba.maps('', 'anna', 'anna'));
  t.notOk(hba.maps('', 'anna', 'bert'));
});

t.test('no text does more than throw its own error', async (_t) => {
  const word = fc.constantFrom(
    'local',
    'host',
    'hostssl',
    'all',
    '"',
    '""',
    '+g',
    '10.0.0.0/8',
    '::/0',
    'md5',
    ',',
    '#',
    '\\\n',
    '/(',
    'map=',
    '=',
  );
  const lines = fc.array(fc.oneof(word, fc.string()), { maxLength: 8 }).map((words) => words.join(' '));
  fc.assert(
    fc.property(lines, (text) => {
      try {
        make(text, text);
      } catch (thrown) {
        if (!/^(hba|ident)\.conf:\d+:1: /.test((thrown as Error).message)) throw thrown;
      }
    }),
    { numRuns: 3000 },
  );
});

t.test('who fails as one user waits, and who fails as many; who is known there does not', async (t) => {
  const failures = new FailedLogins();
  failures.configure({ max: 3, window: 1000 });
  const fail = (address: string, user: string, times: number, now = 0) => {
    for (let each = 0; each < times; each++) failures.onFailure(address, user, now);
  };
  failures.onSuccess('10.0.0.1', 'good');
  fail('10.0.0.1', 'bad', 2);
  t.equal(failures.waitOf('10.0.0.1', 'bad', 0), 0);
  fail('10.0.0.1', 'bad', 1);
  t.equal(failures.waitOf('10.0.0.1', 'bad', 400), 600);
  t.equal(failures.waitOf('10.0.0.1', 'innocent', 400), 0, 'another user at the same address');
  for (let user = 0; user < 9; user++) fail('10.0.0.1', `guess ${user}`, 3);
  t.equal(failures.waitOf('10.0.0.1', 'never seen', 400), 600, 'so many are a guesser');
  t.equal(failures.waitOf('10.0.0.1', 'good', 400), 0);
  t.equal(failures.waitOf('10.0.0.2', 'bad', 400), 0);
  t.equal(failures.waitOf(null, 'bad', 400), 0, 'a Unix socket');
  t.equal(failures.waitOf('10.0.0.1', 'bad', 1000), 0, 'a new window');
  for (let each = 0; each < 3; each++) fail(`2001:db8::${each}`, 'x', 1, 2000);
  t.equal(failures.waitOf('2001:db8::ffff', 'x', 2000), 1000, 'a /64 is one');
  t.equal(failures.waitOf('2001:db8:0:1::1', 'x', 2000), 0);
  t.equal(failures.refused, 3);
});
