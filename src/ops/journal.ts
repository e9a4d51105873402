/**
 * Single requests that somebody may want to know of: those that were refused, by id (`pgweir explain`, SHOW REFUSALS), and both them and the
 * slow ones as lines of the log. Made by app, told by client/session.
 *
 * The one idea: an overload refuses thousands in a second, and a log that says so thousands of times is the next overload. Of each
 * reason one line a second is written, which says how many it stands for; the last RECORDS_MAX refusals can be asked about.
 *
 * Never values of a statement: only its shape.
 */
import type { Inputs } from '../client/turn.ts';
import type { Refusal } from '../protocol/sqlstate.ts';
import type { Nature } from '../sql/verdict.ts';
import type { Clock } from '../util/clock.ts';
import { printable } from '../util/printable.ts';

/** Whose request it was. */
interface Requester {
  readonly id: number;
  readonly user: string;
  readonly database: string;
  readonly socket: { readonly remoteAddress?: string | undefined };
  readonly settings: { readonly reported: ReadonlyMap<string, string> };
  readonly inputs: Inputs | null;
  readonly pool: {
    readonly hostAddress: string;
    readonly waiters: { readonly size: number };
    readonly active: { readonly size: number };
    readonly serverCount: number;
    readonly pinned: number;
    readonly config: {
      readonly size: number;
      readonly queueMax: number;
      readonly waitMax: number;
      readonly pinnedMax: number;
    };
  };
}

/** What is known of its statement. */
interface Asked {
  readonly number: number;
  readonly nature: Nature | null;
  readonly tags: ReadonlyMap<string, string> | null;
}

export interface RefusalRecord {
  id: number;
  /** ISO 8601. */
  at: string;
  reason: string;
  message: string;
  hint: string;
  client: number;
  user: string;
  database: string;
  application: string;
  address: string;
  host: string;
  waitedMs: number;
  /** The key of the configuration that has decided. */
  rule: string;
  /** What that has rested on, at that moment. */
  inputs: Record<string, string | number | boolean | null>;
  /** The shape of the statement; '': not known. */
  statement: string;
  /** Of sqlcommenter's traceparent; ''. */
  traceId: string;
}

type Log = (fields: Record<string, unknown>, message: string) => void;

const RECORDS_MAX = 2_000;
const LINE_MS = 1_000;
const ROUTE_MAX = 200;

const rules: Record<string, string> = {
  wait: 'pool.waitMax, or classes.*.queue.waitMax',
  queue: 'pool.queueMax, or classes.*.queue.max',
  pinned: 'pool.pinnedMax',
  connect: 'databases.*.hosts: no server can be reached',
  deadline: 'the statement_timeout of the session, the tag deadline_ms, or classes.*.deadline',
  overload: 'classes.*.queue: its queue has not been empty for too long',
  throttle: 'admission.retries',
  credits: 'ledgers.*: the zone of the reserve',
  switch: 'a switch (pgweir switch list)',
  hold: 'databases.*.hold',
  breaker: 'breaker',
  misses: 'cache.missesMax',
};

export class Journal {
  slowMs = Number.POSITIVE_INFINITY;
  readonly #clock: Clock;
  readonly #log: Log;
  readonly #natureOf: (number: number) => Nature | null;
  /** In turn: the place of an id is its remainder. */
  readonly #records: RefusalRecord[] = [];
  #newest = 0;
  /** When a reason was last written, and what came since. */
  readonly #lines = new Map<string, { at: number; left: number }>();

  constructor(clock: Clock, natureOf: (number: number) => Nature | null, log: Log) {
    this.#clock = clock;
    this.#natureOf = natureOf;
    this.#log = log;
  }

  onSlow(client: Requester, shape: number, ms: number, asked: Asked | null): void {
    const count = this.#due('slow');
    if (count === 0) return;
    const nature = asked?.nature ?? (shape === 0 ? null : this.#natureOf(shape));
    this.#log(
      { ...whoOf(client), duration_ms: Math.round(ms), statement: nature?.text, ...traceOf(asked), count },
      'slow',
    );
  }

  onRefused(client: Requester, refusal: Refusal, asked: Asked | null, since: number): void {
    const id = refusal.id!;
    const reason = refusal.reason!;
    const { pool, inputs } = client;
    const record: RefusalRecord = {
      id,
      at: new Date(this.#clock.wall()).toISOString(),
      reason,
      message: refusal.message,
      hint: refusal.hint ?? '',
      client: client.id,
      user: client.user,
      database: client.database,
      application: client.settings.reported.get('application_name') ?? '',
      address: client.socket.remoteAddress ?? '',
      host: pool.hostAddress,
      waitedMs: since === 0 ? 0 : Math.round(this.#clock.now() - since),
      rule: rules[reason] ?? reason,
      inputs: {
        ...(inputs === null ? {} : prefixed(inputs)),
        poolWaiting: pool.waiters.size,
        poolQueueMax: pool.config.queueMax,
        poolWaitMax: pool.config.waitMax,
        poolServers: pool.serverCount,
        poolSize: pool.config.size,
        poolActive: pool.active.size,
        poolPinned: pool.pinned,
        poolPinnedMax: pool.config.pinnedMax,
      },
      statement: asked?.nature?.text ?? '',
      traceId: traceOf(asked).trace_id ?? '',
    };
    this.#records[id % RECORDS_MAX] = record;
    this.#newest = Math.max(this.#newest, id);
    const count = this.#due(reason);
    if (count === 0) return;
    this.#log(
      {
        ...whoOf(client),
        id,
        reason,
        sqlstate: refusal.sqlstate,
        class: inputs?.class,
        wait_ms: record.waitedMs,
        statement: record.statement || undefined,
        ...traceOf(asked),
        count,
      },
      'refused',
    );
  }

  /** How many a line would stand for; 0: it is too early for one. */
  #due(reason: string): number {
    const now = this.#clock.now();
    const line = this.#lines.get(reason);
    if (line !== undefined && now - line.at < LINE_MS) {
      line.left++;
      return 0;
    }
    this.#lines.set(reason, { at: now, left: 0 });
    return 1 + (line?.left ?? 0);
  }

  /** Null: there was none, or it is too long ago. */
  explain(id: number): RefusalRecord | null {
    const record = this.#records[id % RECORDS_MAX];
    return record?.id === id ? record : null;
  }

  /** The newest, newest first. */
  recent(count: number): RefusalRecord[] {
    const found: RefusalRecord[] = [];
    for (let id = this.#newest; id > this.#newest - RECORDS_MAX && id > 0 && found.length < count; id--) {
      const record = this.explain(id);
      if (record !== null) found.push(record);
    }
    return found;
  }
}

/** `class` and `rule` are said of the request; the rest as it stands. */
function prefixed({ rule, ...inputs }: Inputs): Record<string, string | number | boolean | null> {
  return { ...inputs, classBy: rule };
}

function whoOf({ id, user, database, pool, settings }: Requester) {
  return {
    client_id: id,
    pool: pool.hostAddress,
    user,
    database,
    application_name: settings.reported.get('application_name') || undefined,
  };
}

/** traceparent of W3C Trace Context: version, trace id, parent id, flags; in log fields by OpenTelemetry's names. */
const TRACEPARENT = /^[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-/;

function traceOf(asked: Asked | null): Record<string, string | undefined> {
  const found = TRACEPARENT.exec(asked?.tags?.get('traceparent') ?? '');
  const route = asked?.tags?.get('route')?.slice(0, ROUTE_MAX);
  return found === null ? { route } : { trace_id: found[1], span_id: found[2], route };
}

export const REFUSAL_COLUMNS =
  'id n, at, reason, user, database, application, class, class_by, host, wait_ms n, statement, trace_id';

export function refusalRows(journal: Journal): (string | number | null)[][] {
  return journal
    .recent(100)
    .map(({ id, at, reason, user, database, application, inputs, host, waitedMs, statement, traceId }) => [
      id,
      at,
      reason,
      user,
      database,
      application,
      String(inputs.class ?? ''),
      String(inputs.classBy ?? ''),
      host,
      waitedMs,
      statement,
      traceId,
    ]);
}

/** What `pgweir explain` prints. */
export function explanationOf(record: RefusalRecord): string {
  const { id, at, message, reason, rule, user, database, application, address, client, host } = record;
  const lines: [string, string][] = [
    ['what', message],
    ['when', `${at}${record.waitedMs === 0 ? '' : `, after ${record.waitedMs} ms of waiting`}`],
    [
      'who',
      `user ${user}, database ${database}, application ${application || '(no name)'}, from ${address || 'a socket'}, client ${client}`,
    ],
    ['where', host],
    ['statement', record.statement || '(not known)'],
    ...(record.traceId === '' ? [] : [['trace', record.traceId] as [string, string]]),
    ['reason', reason],
    ['rule', rule],
    ...Object.entries(record.inputs).map(([name, value]) => [`  ${name}`, `${value ?? 'none'}`] as [string, string]),
    ['what to do', record.hint],
  ];
  return [`request ${id} was refused`, ...lines.map(([name, text]) => `${name.padEnd(16)} ${printable(text)}`)].join(
    '\n',
  );
}
