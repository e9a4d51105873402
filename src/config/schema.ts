/**
 * The configuration: one zod schema that gives the types, the defaults, the documentation (docs/config.md), the JSON
 * Schema (config.schema.json) and the checks. Everything else imports only types from here; config/load applies it.
 *
 * Units: after loading, every duration is a number of milliseconds, every size bytes, every share a fraction. 0 means
 * off where the description says so. Each value has its default here and nowhere else.
 */
import { isIP } from 'node:net';
import { z } from 'zod';

const DURATION = /^(\d+(?:\.\d+)?)(ms|s|m|h|d)$/;
const DURATION_UNITS: Record<string, number> = { ms: 1, s: 1_000, m: 60_000, h: 3_600_000, d: 86_400_000 };
const SIZE = /^(\d+(?:\.\d+)?)(B|KiB|MiB|GiB)$/;
const SIZE_UNITS: Record<string, number> = { B: 1, KiB: 1024, MiB: 1024 ** 2, GiB: 1024 ** 3 };
const SHARE = /^(\d+(?:\.\d+)?)%$/;

function measure(pattern: RegExp, units: Record<string, number>, example: string) {
  return z
    .string({ error: `expected a value like ${example}` })
    .regex(pattern, `expected a value like ${example}`)
    .transform((text) => {
      const [, amount, unit] = pattern.exec(text)!;
      return Number(amount) * (units[unit ?? ''] ?? 0.01);
    });
}

/** Of servers on one host, where nothing is said. */
export const HOST_SERVERS_MAX = 100;

const duration = () => measure(DURATION, DURATION_UNITS, '250ms, 5s, 10m, 1h or 7d');
const positive = () => duration().refine((ms) => ms > 0, 'expected more than nothing');
const size = () => measure(SIZE, SIZE_UNITS, '64KiB or 256MiB');
const share = () => measure(SHARE, {}, '5%');
const count = (min = 0) => z.int().min(min);
/** YAML 1.1 takes on and off for true and false. */
const onOff = <S extends z.ZodType>(schema: S) =>
  z.preprocess((value) => (typeof value === 'boolean' ? (value ? 'on' : 'off') : value), schema);
const port = () => z.int().min(0).max(65_535);

const minVersion = () =>
  z.enum(['TLSv1.2', 'TLSv1.3']).prefault('TLSv1.2').describe('Oldest version of TLS that is spoken.');
const ciphers = () => z.string().optional().describe('Ciphers of OpenSSL; default: those of Node.');

const listenTls = z
  .strictObject({
    mode: z
      .enum(['disable', 'allow', 'prefer', 'require', 'verify-ca', 'verify-full'])
      .prefault('disable')
      .describe(
        'Whether clients may, or must, use TLS; verify-ca and verify-full also ask for a certificate, and verify-full wants its common name to be the user.',
      ),
    cert: z.string().optional().describe('PEM file with the certificate chain. Needed unless mode is disable.'),
    key: z.string().optional().describe('PEM file with the private key. Needed unless mode is disable.'),
    ca: z.string().optional().describe('PEM file with the authorities that may sign client certificates.'),
    crl: z.string().optional().describe('PEM file with certificates that they have revoked.'),
    minVersion: minVersion(),
    ciphers: ciphers(),
    names: z
      .record(
        z.string(),
        z.strictObject({
          cert: z.string().describe('As cert.'),
          key: z.string().describe('As key.'),
        }),
      )
      .prefault({})
      .describe('Certificates for clients that ask for another name (SNI), by that name.'),
  })
  .refine(
    (tls) => tls.mode === 'disable' || (tls.cert !== undefined && tls.key !== undefined),
    'cert and key are needed unless mode is disable',
  )
  .refine(
    (tls) => !tls.mode.startsWith('verify-') || tls.ca !== undefined,
    'ca is needed to verify client certificates',
  );

const serverTls = z
  .strictObject({
    mode: z
      .enum(['disable', 'prefer', 'require', 'verify-ca', 'verify-full'])
      .prefault('prefer')
      .describe('As sslmode of libpq.'),
    ca: z
      .string()
      .optional()
      .describe('PEM file with the authorities that may sign the server’s certificate; default: those of the system.'),
    crl: z.string().optional().describe('PEM file with certificates that they have revoked.'),
    cert: z.string().optional().describe('PEM file with a client certificate.'),
    key: z.string().optional().describe('PEM file with its private key.'),
    minVersion: minVersion(),
    ciphers: ciphers(),
    negotiation: z
      .enum(['postgres', 'direct'])
      .prefault('postgres')
      .describe(
        'direct: TLS at once, without asking, which saves a round trip (Postgres 17); as sslnegotiation of libpq.',
      ),
    channelBinding: z
      .enum(['disable', 'prefer', 'require'])
      .prefault('prefer')
      .describe('Whether SCRAM is bound to the server’s certificate, as channel_binding of libpq.'),
  })
  .refine(
    (tls) => tls.negotiation === 'postgres' || !['disable', 'prefer'].includes(tls.mode),
    'negotiation direct needs mode require, verify-ca or verify-full',
  )
  .refine(
    (tls) => tls.channelBinding !== 'require' || !['disable', 'prefer'].includes(tls.mode),
    'channelBinding require needs mode require, verify-ca or verify-full',
  )
  .refine((tls) => (tls.cert === undefined) === (tls.key === undefined), 'cert and key belong together');

const listen = z
  .strictObject({
    host: z.string().prefault('127.0.0.1').describe('Address to listen on; 0.0.0.0 or :: for all.'),
    port: port().prefault(6432).describe('TCP port. 0 lets the system choose.'),
    socketDir: z
      .string()
      .nullable()
      .prefault(null)
      .describe('Also listen on a Unix socket in this directory, as unix_socket_directories of Postgres.'),
    clientsMax: count(1).max(200_000).prefault(5000).describe('Most clients at a time; one more gets FATAL 53300.'),
    databaseClientsMax: count()
      .prefault(0)
      .describe('Most clients of any one database, the console among them; 0: no limit.'),
    applicationNameAddHost: onOff(z.enum(['off', 'on']))
      .prefault('off')
      .describe('on: the application_name of a session ends with the client’s address and port.'),
    loginTimeout: positive().prefault('15s').describe('Longest time from connecting to being logged in.'),
    ignoreParameters: z
      .array(z.string())
      .prefault([])
      .describe(
        'Startup parameters that are dropped, as ignore_startup_parameters of PgBouncer; all others are passed on.',
      ),
    messageMax: size().prefault('64MiB').describe('Largest single message of a client; a larger one gets FATAL 54000.'),
    tls: listenTls.prefault({}).describe('TLS towards clients.'),
  })
  .describe('Where clients connect.');

const ops = z
  .strictObject({
    host: z.string().prefault('127.0.0.1').describe('Address of the HTTP port.'),
    port: port()
      .prefault(9432)
      .describe('HTTP port for /metrics, /livez, /readyz, /status.json and POST /switches/NAME.'),
    tokenFile: z
      .string()
      .nullable()
      .prefault(null)
      .describe(
        'File with a bearer token: when set, /metrics and /status.json ask for it. Switches are set with it, or with the login of one of auth.admins.',
      ),
  })
  .describe('What people and their tools look at.');

const drain = z
  .strictObject({
    delay: duration().prefault('0s').describe('On TERM, time between "not ready" and refusing new clients.'),
    timeout: duration().prefault('60s').describe('Longest time that running transactions get to finish.'),
    clients: duration()
      .prefault('10m')
      .describe('After an upgrade, how long clients of the process before may stay; then it drains as on TERM.'),
  })
  .describe('How the process stops.');

const log = z
  .strictObject({
    level: z.enum(['debug', 'info', 'warn', 'error']).prefault('info').describe('Least severity that is written.'),
    format: z.enum(['json', 'text']).prefault('json').describe('json: one object a line; text: for a terminal.'),
    slow: duration()
      .prefault('1s')
      .describe('Statements that take so long are written down, one a second at most, as their shape without values.'),
  })
  .describe('Logs, on standard output. Never values of a statement.');

const state = z
  .strictObject({
    dir: z
      .string()
      .nullable()
      .prefault(null)
      .describe('Directory for what must survive a restart; left out: memory only.'),
  })
  .describe('What survives a restart.');

/** Passwords that are not valid any more are none. */
const AUTH_QUERY =
  'SELECT rolname, CASE WHEN rolvaliduntil < now() THEN NULL ELSE rolpassword END FROM pg_authid WHERE rolname = $1 AND rolcanlogin';

const authQuery = z.strictObject({
  user: z.string().describe('Who asks: a user of the server that may read what the query reads.'),
  passwordFile: z.string().optional().describe('Its password; otherwise what auth.users has for it.'),
  sql: z
    .string()
    .prefault(AUTH_QUERY)
    .describe('Gives name and secret of the user $1, or no row. Its search_path is pg_catalog.'),
  database: z.string().optional().describe('Where it is asked; otherwise in the database that the client asks for.'),
});

const auth = z
  .strictObject({
    method: z
      .enum(['trust', 'md5', 'scram-sha-256', 'cert', 'hba'])
      .prefault('scram-sha-256')
      .describe(
        'How clients prove who they are. cert: by a certificate whose common name is the user; hba: as the rules of hba say.',
      ),
    hba: z
      .string()
      .nullable()
      .prefault(null)
      .describe('File with rules as pg_hba.conf of Postgres: who may log in from where, and how.'),
    ident: z
      .string()
      .nullable()
      .prefault(null)
      .describe('File with maps from names of certificates to users, as pg_ident.conf of Postgres.'),
    failures: z
      .strictObject({
        max: count()
          .prefault(20)
          .describe(
            'Failed logins as one user from one address in a window; ten times as many as whomever. 0: any number.',
          ),
        window: duration().prefault('1m').describe('How long they count.'),
      })
      .prefault({})
      .describe('Beyond it such logins are refused; not of users who have logged in from there before.'),
    users: z
      .string()
      .nullable()
      .prefault(null)
      .describe(
        'File in PgBouncer’s auth_file format: "name" "password | md5… | SCRAM-SHA-256$…". Optional with trust.',
      ),
    query: authQuery
      .nullable()
      .prefault(null)
      .describe('Asks the server for users that auth.users has not, as PgBouncer’s auth_query.'),
    admins: z.array(z.string()).prefault(['postgres']).describe('Users who may give every console command.'),
    readers: z.array(z.string()).prefault([]).describe('Users who may give SHOW commands.'),
  })
  .refine(
    (value) => ['trust', 'cert', 'hba'].includes(value.method) || value.users !== null || value.query !== null,
    'users or query is needed unless method is trust or cert',
  )
  .refine((value) => (value.method === 'hba') === (value.hba !== null), 'method hba and the file hba belong together')
  .describe('Who may connect.');

const ADDRESS = /^(?:\[([^\]]+)\]|([^:]+))(?::(\d{1,5}))?$/;
const POSTGRES_PORT = 5432;

const address = z
  .string()
  .refine((text) => ADDRESS.test(text), 'expected host:port, [IPv6]:port, or a socket directory and :port')
  .transform((text) => {
    const [, ipv6, name, port] = ADDRESS.exec(text)!;
    return { host: ipv6 ?? name!, port: port === undefined ? POSTGRES_PORT : Number(port) };
  });

const host = z.union([
  address.transform((value) => ({ ...value, serversMax: null as number | null, ledgers: null as string[] | null })),
  z
    .strictObject({
      address: address.describe('host:port'),
      serversMax: count(1).nullable().prefault(null).describe('As databases.*.serversMax, for this host.'),
      ledgers: z.array(z.string()).nullable().prefault(null).describe('As databases.*.ledgers, for this host.'),
    })
    .transform(({ address: { host, port }, ...rest }) => ({ host, port, ...rest })),
]);

const poolShape = {
  mode: z
    .enum(['session', 'transaction', 'statement'])
    .prefault('transaction')
    .describe('How long a client keeps a server.'),
  size: count(1).prefault(20).describe('Server connections per user, at most.'),
  sizeReserve: count()
    .prefault(0)
    .describe('Server connections beyond size for when somebody has waited for reserveAfter.'),
  reserveAfter: duration().prefault('5s').describe('Wait that opens the reserve.'),
  sizeTotal: count()
    .prefault(0)
    .describe('Server connections of the database over all its users, at most; 0: serversMax is all that counts.'),
  pinnedMax: share()
    .prefault('50%')
    .describe('Share of size (at least one server) that may be pinned to one client each.'),
  sizeMin: count().prefault(0).describe('Server connections to keep open even when idle, once a pool exists.'),
  waitMax: duration().prefault('5s').describe('Longest wait for a server before a refusal (53000).'),
  queueMax: count().prefault(1000).describe('Most requests waiting for a server; one more is refused (53000).'),
  preparedMax: count(1).prefault(200).describe('Prepared statements kept per server connection.'),
  share: z
    .preprocess((value) => (value === false ? 'off' : value), z.enum(['off', 'auto']))
    .prefault('auto')
    .describe('auto: short single reads of several clients are in flight on one server; off: one client at a time.'),
  idleMax: duration().prefault('10m').describe('A server idle for longer is closed; 0s: never.'),
  unusedMax: duration()
    .prefault('0s')
    .describe(
      'A pool without clients and servers is forgotten, counts and all, when nobody has used it for so long; 0s: never, unless its database is.',
    ),
  lifetimeMax: duration()
    .prefault('1h')
    .describe('A server older than this (with up to 10 % jitter) is closed when free; 0s: never.'),
  connectMax: positive().prefault('5s').describe('Longest time for one connection attempt, login included.'),
  idleInTransactionMax: duration()
    .prefault('0s')
    .describe('A client idle in a transaction for longer is ended with 25P03; 0s: off.'),
  queryMax: duration().prefault('0s').describe('A statement running for longer is cancelled; 0s: off.'),
  transactionMax: duration()
    .prefault('0s')
    .describe('A client whose transaction runs for longer is ended with 25P04; 0s: off.'),
  clientIdleMax: duration().prefault('0s').describe('A client idle for longer is ended with 57P05; 0s: off.'),
};

const pool = z.strictObject(poolShape).refine((value) => value.sizeMin <= value.size, 'sizeMin must not exceed size');

const SAME = 'As in databases.*.pool.';

/** What one user may have otherwise than its databases say. */
const userPool = z.strictObject({
  mode: poolShape.mode.unwrap().optional().describe(SAME),
  size: poolShape.size.unwrap().optional().describe(SAME),
  sizeReserve: poolShape.sizeReserve.unwrap().optional().describe(SAME),
  reserveAfter: poolShape.reserveAfter.unwrap().optional().describe(SAME),
  waitMax: poolShape.waitMax.unwrap().optional().describe(SAME),
  queryMax: poolShape.queryMax.unwrap().optional().describe(SAME),
  transactionMax: poolShape.transactionMax.unwrap().optional().describe(SAME),
  idleInTransactionMax: poolShape.idleInTransactionMax.unwrap().optional().describe(SAME),
  clientIdleMax: poolShape.clientIdleMax.unwrap().optional().describe(SAME),
});

const user = z
  .strictObject({
    clientsMax: count().prefault(0).describe('Most clients of this user at a time, over all databases; 0: no limit.'),
    serversMax: count()
      .prefault(0)
      .describe('Server connections as this user at most, over all databases; 0: no limit.'),
    pool: userPool
      .prefault({})
      .describe('As databases.*.pool, for this user. Who has such settings has pools of its own.'),
  })
  .describe('One user.');

const control = z.strictObject({
  user: z.string().describe('User of the control connection.'),
  passwordFile: z.string().optional().describe('File with its password.'),
});

const hold = z.strictObject({
  for: duration()
    .prefault('20s')
    .describe('How long requests wait from the start of an outage; then they are refused (53000). 0s: not at all.'),
  requestsMax: count().prefault(1000).describe('Most requests that are held.'),
  bytesMax: size().prefault('16MiB').describe('Most bytes of them.'),
});

const database = z
  .strictObject({
    hosts: z
      .array(host)
      .min(1)
      .describe(
        'Where the database lives: a primary and its standbys. Which is which is found out, by the control user.',
      ),
    control: control
      .optional()
      .describe(
        'Login for looking at the hosts and reading the catalogue: with it roles are known, and user functions are judged instead of pinned.',
      ),
    dbname: z.string().optional().describe('Name of the database on the server; default: the name asked for.'),
    user: z.string().optional().describe('User to log in as; default: the client’s own, with SCRAM pass-through.'),
    passwordFile: z.string().optional().describe('File with that user’s password; read again once when a login fails.'),
    authQuery: authQuery.nullable().prefault(null).describe('As auth.query, for this database.'),
    tls: serverTls.prefault({}).describe('TLS towards the server.'),
    pool: pool.prefault({}).describe('Server connections of one user.'),
    serversMax: count(1)
      .prefault(HOST_SERVERS_MAX)
      .describe('Server connections per host, over all users and databases on it.'),
    clientsMax: count()
      .nullable()
      .prefault(null)
      .describe('Most clients of this database, instead of listen.databaseClientsMax; one more gets FATAL 53300.'),
    connectQuery: z
      .string()
      .optional()
      .describe('SQL that is run on every new server connection, before anybody uses it.'),
    unusedMax: duration()
      .prefault('1h')
      .describe('A database that "*" stands for is forgotten when nobody has used it for so long; 0s: never.'),
    reads: z
      .enum(['primary', 'replica', 'spill'])
      .prefault('primary')
      .describe(
        'Where single reads outside transactions go: replica: to a standby that has all which the client has written; spill: so while the reserve of the primary is RED or BLACK.',
      ),
    lagMax: duration().prefault('1s').describe('How old what a standby has may be for that; below 500ms it seldom is.'),
    hold: hold.prefault({}).describe('While no primary can be reached.'),
    ledgers: z.array(z.string()).prefault([]).describe('Reserves of its hosts.'),
    cache: z.string().nullable().prefault(null).describe('Which of cache.sets says what may be kept of its answers.'),
  })
  .refine(
    (value) => value.hosts.length === 1 || value.control !== undefined,
    'several hosts need control: it is the control user who finds out which of them is the primary',
  )
  .refine(
    ({ hosts }) => new Set(hosts.map(({ host, port }) => `${host}:${port}`)).size === hosts.length,
    'the same host stands in hosts twice',
  )
  .refine((value) => value.reads === 'primary' || value.hosts.length > 1, 'reads on standbys need more than one host')
  .refine((value) => value.passwordFile === undefined || value.user !== undefined, 'passwordFile needs user')
  .describe('One database, by the name that clients ask for; "*" stands for every other name.');

const admission = z
  .strictObject({
    mode: z
      .enum(['observe', 'warn', 'enforce'])
      .prefault('observe')
      .describe(
        'enforce: requests wait for their turn by class, and are refused (53000) when it does not come; warn: they run, and their client gets a NOTICE; observe: they run, and are counted.',
      ),
    retries: z
      .strictObject({
        ratio: share()
          .prefault('10%')
          .describe(
            'Retries of refused requests that an application may queue for each first attempt; more queue behind.',
          ),
        tarpit: duration()
          .prefault('250ms')
          .describe('A refusal of what was refused a moment ago is kept for at least this long; 0s: answered at once.'),
        tarpitMax: duration().prefault('2s').describe('And for this long at most.'),
      })
      .refine((value) => value.tarpit <= value.tarpitMax, 'tarpit must not exceed tarpitMax')
      .prefault({})
      .describe('What is asked again after a refusal.'),
  })
  .describe('Whether requests are admitted by class.');

const breaker = z
  .strictObject({
    window: duration().prefault('10s').describe('How far is looked back.'),
    failures: share().prefault('50%').describe('Share of answers in the window that opens it.'),
    requestsMin: count(1).prefault(20).describe('With fewer requests in the window it does not open.'),
    openFor: duration()
      .prefault('5s')
      .describe('How long nobody passes (53000); then a share does that grows from 5 % to all.'),
  })
  .describe(
    'Circuit breaker of each host: opens when its answers say that it cannot (SQLSTATE 08, 53, 57P01 to 57P03, time limits), while a primary is there.',
  );

const limit = z
  .strictObject({
    mode: z
      .preprocess((value) => (value === false ? 'off' : value), z.enum(['adaptive', 'fixed', 'off']))
      .prefault('off')
      .describe(
        'adaptive: between min and max, as many as do not make statements take longer than normal; fixed: at most max servers of a host are at work at a time; off: as many as the pools have.',
      ),
    min: count(1).prefault(2).describe('Least servers at work that the limit allows.'),
    max: count(1).prefault(20).describe('Most servers of one host at work at the same time.'),
  })
  .refine((value) => value.min <= value.max, 'min must not exceed max')
  .describe('How many servers of a host may be at work at the same time; a transaction whose client thinks is not.');

const cidr = z.string().refine((text) => {
  const [network, prefix, ...more] = text.split('/') as [string, string?, ...string[]];
  const bits = isIP(network) === 6 ? 128 : 32;
  return isIP(network) > 0 && more.length === 0 && (prefix === undefined || (/^\d+$/.test(prefix) && +prefix <= bits));
}, 'expected an IP address or a network such as 10.0.0.0/8');

const match = z
  .strictObject({
    user: z.string().optional().describe('The user that the client has logged in as.'),
    database: z.string().optional().describe('The database that it has asked for.'),
    application: z.string().optional().describe('application_name at login; * stands for any characters.'),
    address: cidr.optional().describe('The client’s IP address, or its network.'),
    tag: z
      .record(z.string(), z.string())
      .optional()
      .describe('Tags in a comment of the statement (sqlcommenter): all of them.'),
    shape: z
      .string()
      .optional()
      .describe('An example of the statement: those that differ only in their values (and comments) match.'),
    table: z
      .string()
      .regex(/^[^.]+(\.[^.]+)?$/, 'expected a name, or schema.name')
      .optional()
      .describe(
        'A table that the statement names, with its schema only if the statement names that too; with kind: write, one that it writes.',
      ),
    kind: z
      .enum(['read', 'write', 'ddl', 'other'])
      .optional()
      .describe('What the statement does, as far as its text says; FOR UPDATE counts as write.'),
  })
  .refine((value) => Object.keys(value).length > 0, 'at least one key is needed');

const requestClass = z.strictObject({
  name: z
    .string()
    .regex(/^[a-z][a-z0-9_-]{0,62}$/, 'expected lower-case letters, digits, - and _')
    .describe(
      'normal is what nothing else matches; health is for pings (SELECT 1) and upkeep (SET, SHOW, ROLLBACK, DISCARD, …), whoever sends them.',
    ),
  priority: z
    .enum(['critical', 'normal', 'batch', 'deferrable'])
    .prefault('normal')
    .describe('Strict: higher ones first.'),
  match: z.array(match).prefault([]).describe('One of these must hold, all of its keys.'),
  users: z
    .array(z.string())
    .optional()
    .describe('Who may be in this class at all; they may also ask for it: options=-c pgweir.class=name.'),
  weight: z.number().positive().prefault(1).describe('Share among classes of the same priority.'),
  floor: share()
    .prefault('0%')
    .describe(
      'Share of the limit that it gets whatever others want; whole servers of it even when the limit is reached.',
    ),
  ceiling: share().prefault('100%').describe('Share of the limit that it gets at most.'),
  serversMax: count(1).optional().describe('Most servers at work for it.'),
  queue: z
    .strictObject({
      max: count().prefault(1000).describe('Most requests that wait.'),
      waitMax: duration().prefault('5s').describe('Longest wait.'),
    })
    .prefault({})
    .describe('What waits to be admitted.'),
  deadline: duration()
    .prefault('0s')
    .describe('After this, from its arrival, nobody wants the answer any more; 0s: never.'),
  order: z
    .enum(['auto', 'fifo'])
    .prefault('auto')
    .describe('fifo: oldest first, always; auto: youngest first while the class is overloaded.'),
});

const classes = z
  .array(requestClass)
  .prefault([])
  .refine((all) => new Set(all.map(({ name }) => name)).size === all.length, 'every class needs a name of its own')
  .refine((all) => all.reduce((sum, { floor }) => sum + floor, 0) <= 1, 'the floors together must not exceed 100%')
  .describe('Kinds of requests and their priorities; the first match wins, and what matches nothing is "normal".');

const every = () =>
  positive().prefault('30s').describe('How often it is asked; no sample for six times as long counts as none.');
const lag = () =>
  duration()
    .prefault('0s')
    .describe(
      'How old a value already is when the source says that it is of now, as with exporters that set no times.',
    );

const reading = z.discriminatedUnion('source', [
  z.strictObject({
    source: z.literal('prometheus'),
    url: z.url().describe('Of the server, without /api.'),
    query: z.string().describe('PromQL that gives one series.'),
    every: every(),
    lag: lag(),
  }),
  z.strictObject({
    source: z.literal('cloudwatch'),
    region: z.string().describe('AWS region.'),
    namespace: z.string().prefault('AWS/RDS').describe('Of the metric.'),
    name: z.string().describe('Of the metric.'),
    dimensions: z.record(z.string(), z.string()).prefault({}).describe('Of the metric, such as DBInstanceIdentifier.'),
    period: positive().prefault('5m').describe('Of the points; credit metrics have 5m.'),
  }),
  z.strictObject({
    source: z.literal('sql'),
    database: z.string().describe('One of databases, with a control user.'),
    query: z.string().describe('Gives rows of value and, if there is a second column, time.'),
    every: every(),
    lag: lag(),
  }),
  z.strictObject({
    source: z.literal('http'),
    url: z.url(),
    value: z.string().startsWith('/').describe('JSON pointer to the value.'),
    time: z.string().startsWith('/').optional().describe('JSON pointer to its time.'),
    every: every(),
    lag: lag(),
  }),
]);

const ledger = z
  .strictObject({
    metric: reading.describe('Where the balance is read.'),
    load: reading
      .optional()
      .describe('Where the utilisation is read, in percent of all vcpus: what is spent is then known sooner.'),
    backlog: z
      .strictObject({
        class: z.string().describe('The class that they will be in: what one of them costs is measured there.'),
        metric: reading.describe('Where their number is read.'),
      })
      .optional()
      .describe('Jobs that wait outside the proxy, in a queue or a table: whether they fit into the reserve is told.'),
    unit: z
      .enum(['cpu-credits', 'io-credits', 'percent'])
      .describe('A CPU credit is one vCPU for a minute; percent is of a bucket of unknown size.'),
    capacity: z.number().positive().optional().describe('The most that can be saved up; 100 for percent.'),
    earnPerHour: z
      .number()
      .nonnegative()
      .optional()
      .describe('What is earned; left out: learned with what else goes on.'),
    spendPerHour: z
      .number()
      .positive()
      .optional()
      .describe('The most that can be spent; for CPU credits 60 for each vCPU.'),
    vcpus: count(1).optional().describe('Of the database.'),
    effect: z
      .enum(['throttle', 'bill'])
      .prefault('throttle')
      .describe(
        'What happens at zero: throttle, the database becomes slow; bill, it costs money, and nothing is held back.',
      ),
    reserve: share().prefault('5%').describe('Share of the capacity that only critical work may touch.'),
    horizon: positive().prefault('1h').describe('How long what is above the reserve is to last.'),
    mode: z
      .enum(['observe', 'warn', 'enforce'])
      .prefault('observe')
      .describe(
        'enforce: what is not critical waits for its share of what may be spent (needs admission.mode enforce).',
      ),
    onMissing: z
      .enum(['baseline', 'open', 'closed'])
      .prefault('baseline')
      .describe(
        'Without a sample: baseline, as much as is earned, and nothing that is deferrable; open, all, with a warning; closed, only critical work.',
      ),
  })
  .refine(
    (value) => value.unit === 'percent' || value.capacity !== undefined,
    'capacity is needed unless the unit is percent',
  )
  .refine(
    (value) => value.unit !== 'cpu-credits' || (value.vcpus !== undefined && value.earnPerHour !== undefined),
    'cpu-credits need vcpus and earnPerHour',
  )
  .refine((value) => value.load === undefined || value.unit === 'cpu-credits', 'load is for cpu-credits only')
  .describe('A reserve that burst capacity lives on.');

const position = onOff(z.union([z.enum(['on', 'off', 'hold']), share()]));

const switches = z
  .record(
    z.string().regex(/^[\w-]{1,63}$/, 'the name of a switch is made of letters, digits, _ and -'),
    z
      .strictObject({
        class: z.string().optional().describe('The class that it is for.'),
        match: match.optional().describe('Or the requests that it is for, of whatever class.'),
        state: position
          .prefault('on')
          .describe(
            'on; off: refused; hold: waits; a share such as 25%: this much passes. May be set by hand as well.',
          ),
      })
      .refine(
        (value) => (value.class === undefined) !== (value.match === undefined),
        'either class or match is needed',
      ),
  )
  .prefault({})
  .describe('Switches by name; set by hand with pgweir switch, or SET SWITCH in the console.');

const consistency = z.enum(['ttl', 'session', 'proxy', 'wal']);

const cacheRule = z
  .strictObject({
    tables: z
      .array(z.string().min(1))
      .min(1)
      .optional()
      .describe('Tables and views that statements of this rule read: name or schema.name, with * for any characters.'),
    hint: z.boolean().prefault(false).describe('Statements that say /*+ pgweir cache ttl=30s */ themselves.'),
    ttl: duration()
      .prefault('30s')
      .describe('How long an answer counts as fresh; a tenth of it less or more, by chance.'),
    staleWhileRevalidate: duration()
      .prefault('0s')
      .describe('How long after that it is still given, while it is asked for again.'),
    staleIfError: duration()
      .prefault('0s')
      .describe('How long after that it is still given when the database cannot answer.'),
    consistency: consistency
      .prefault('session')
      .describe(
        'ttl: up to that old; session: and each client sees its own writes; proxy: and those of all clients of this proxy; wal: and those that bypass it.',
      ),
  })
  .refine((rule) => rule.hint !== (rule.tables !== undefined), 'either tables or hint is needed');

const cache = z
  .strictObject({
    mode: onOff(z.enum(['off', 'observe', 'on']))
      .prefault('observe')
      .describe('observe: count what would have been answered, and answer nothing; on: answer.'),
    memoryMax: size().prefault('64MiB').describe('Most memory for answers.'),
    entryMax: size().prefault('1MiB').describe('Largest answer that is kept.'),
    missesMax: share()
      .prefault('50%')
      .describe('Of the servers of a pool, how many may be filling the cache at the same time.'),
    verify: share().prefault('1%').describe('Of the answers given, how many are compared with those of the database.'),
    inTransactions: onOff(z.enum(['off', 'on']))
      .prefault('off')
      .describe('Whether a transaction that has only begun, at READ COMMITTED, may be answered from the cache.'),
    backend: z
      .strictObject({
        url: z
          .string()
          .describe(
            'redis://host:port, rediss://…, redis+cluster://a,b or redis+sentinel://a,b/name: Redis or Valkey.',
          ),
        budget: duration().prefault('15ms').describe('The longest that a read may wait for it.'),
        passwordFile: z.string().nullable().prefault(null).describe('File with its password.'),
        macSecretFile: z
          .string()
          .nullable()
          .prefault(null)
          .describe(
            'File with the secret that answers there are signed with. Without it only damage is found, not forgery.',
          ),
      })
      .optional()
      .describe('A cache that several pgweirs share. Left out: memory only. It may be down, at the start and later.'),
    wal: z
      .strictObject({
        lagMax: duration()
          .prefault('200ms')
          .describe(
            'How far the stream of changes may be behind; beyond it, consistency wal is not answered from the cache.',
          ),
      })
      .prefault({})
      .describe('Hearing of writes that bypass the proxy.'),
    sets: z
      .record(z.string(), z.array(cacheRule).min(1))
      .prefault({})
      .describe(
        'Rules by the name that databases.*.cache gives. A statement needs a rule for each table that it reads; the strictest counts.',
      ),
  })
  .describe('Answers that are kept and given again.');

export const configSchema = z
  .strictObject({
    listen: listen.prefault({}),
    ops: ops.prefault({}),
    state: state.prefault({}),
    drain: drain.prefault({}),
    log: log.prefault({}),
    auth: auth,
    admission: admission.prefault({}),
    limit: limit.prefault({}),
    breaker: breaker.prefault({}),
    cache: cache.prefault({}),
    ledgers: z.record(z.string(), ledger).prefault({}).describe('Reserves by name.'),
    classes,
    switches,
    instances: count(1)
      .prefault(1)
      .describe('How many pgweirs stand before the same databases: limits and caps of hosts are divided by it.'),
    users: z.record(z.string(), user).prefault({}).describe('Limits of users, by name; "*" stands for every other.'),
    databases: z
      .record(z.string(), database)
      .refine((all) => Object.keys(all).length > 0, 'at least one database is needed'),
  })
  .superRefine(({ auth, listen }, context) => {
    if (auth.method === 'cert' && listen.tls.ca === undefined)
      context.addIssue({ code: 'custom', path: ['auth', 'method'], message: 'cert needs listen.tls with ca' });
  })
  .superRefine(({ databases, cache }, context) => {
    for (const [name, { cache: set, control }] of Object.entries(databases)) {
      const complain = (message: string) =>
        context.addIssue({ code: 'custom', path: ['databases', name, 'cache'], message });
      if (set === null) continue;
      if (!Object.hasOwn(cache.sets, set)) complain(`there is no set "${set}" in cache.sets`);
      if (control === undefined) complain('a cache needs a control user, who reads what tables there are');
    }
  })
  .superRefine(({ databases, ledgers, admission, classes }, context) => {
    const complain = (path: PropertyKey[], message: string) => context.addIssue({ code: 'custom', path, message });
    for (const [name, { ledgers: own, hosts }] of Object.entries(databases)) {
      for (const each of own)
        if (!Object.hasOwn(ledgers, each)) complain(['databases', name, 'ledgers'], `there is no ledger "${each}"`);
      hosts.forEach((host, index) => {
        for (const each of host.ledgers ?? [])
          if (!Object.hasOwn(ledgers, each))
            complain(['databases', name, 'hosts', index], `there is no ledger "${each}"`);
      });
    }
    for (const [name, { mode, metric, load, backlog }] of Object.entries(ledgers)) {
      if (mode === 'enforce' && admission.mode !== 'enforce')
        complain(['ledgers', name, 'mode'], 'enforce needs admission.mode enforce: it is there that requests wait');
      if (backlog !== undefined && !['normal', ...classes.map(({ name }) => name)].includes(backlog.class))
        complain(['ledgers', name, 'backlog', 'class'], `there is no class "${backlog.class}"`);
      for (const [key, source] of Object.entries({ metric, load, 'backlog.metric': backlog?.metric })) {
        if (source?.source === 'sql' && databases[source.database]?.control === undefined)
          complain(
            ['ledgers', name, ...key.split('.'), 'database'],
            `"${source.database}" is no database with a control user`,
          );
      }
    }
  })
  .superRefine(({ switches, classes }, context) => {
    const names = [...classes.map(({ name }) => name), 'normal', 'health'];
    for (const [name, { class: of, match }] of Object.entries(switches)) {
      if (match !== undefined && names.includes(name))
        context.addIssue({ code: 'custom', path: ['switches', name], message: 'a class has this name' });
      if (of !== undefined && of !== name && names.includes(name))
        context.addIssue({
          code: 'custom',
          path: ['switches', name],
          message: `it is for "${of}", and another class has this name`,
        });
      if (of === undefined || names.includes(of)) continue;
      context.addIssue({ code: 'custom', path: ['switches', name, 'class'], message: `there is no class "${of}"` });
    }
  })
  .describe('pgweir configuration');

/**
 * Keys of the contract that a later version will understand. They are errors of their own, so that nobody believes a
 * protection to be in force that is not there. `*` stands for any one name or index.
 */
export const laterKeys: readonly string[] = ['trustFunctions', 'workers'];

/** Values that a later version will understand. */
export const laterValues: Readonly<Record<string, readonly string[]>> = {};

/** The JSON Schema of the file, for editors (draft 7, which the YAML language server documents). */
export function jsonSchema(): object {
  return z.toJSONSchema(configSchema, { io: 'input', target: 'draft-7' });
}

export type Config = z.output<typeof configSchema>;
export type ListenConfig = Config['listen'];
export type DatabaseConfig = Config['databases'][string];
export type UserConfig = Config['users'][string];
export type PoolConfig = DatabaseConfig['pool'];
export type HostConfig = DatabaseConfig['hosts'][number];
export type ServerTlsConfig = DatabaseConfig['tls'];
export type AuthConfig = Config['auth'];
export type AuthQueryConfig = NonNullable<AuthConfig['query']>;
export type LedgerConfig = Config['ledgers'][string];
export type ReadingConfig = LedgerConfig['metric'];
export type ClassConfig = Config['classes'][number];
export type ClassMatch = ClassConfig['match'][number];
export type CacheConfig = Config['cache'];
export type CacheRule = CacheConfig['sets'][string][number];
export type Consistency = CacheRule['consistency'];
/** What a reload leaves as it is until the next start. */
export const RESTART_KEYS: readonly string[] =
  'listen.host, listen.port, listen.socketDir, ops.host, ops.port, state.dir, log.format'.split(', ');

export type SwitchConfig = Config['switches'][string];
