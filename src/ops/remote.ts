/**
 * A running pgweir as seen from the command line: its HTTP port (ops/http). Called by cli.
 */
import { readFileSync } from 'node:fs';
import { messageOf } from '../util/errors.ts';
import type { Coupling } from './coupling.ts';
import type { RefusalRecord } from './journal.ts';
import type { Status } from './status.ts';
import { percent } from './switchboard.ts';

export interface RemoteOptions {
  url: string;
  tokenFile: string | null;
  /** One of auth.admins, when there is no token; its password is in PGPASSWORD. */
  user: string;
}

/** What a switch touches, and whether it was set. */
export interface SwitchAnswer {
  name: string;
  isDone: boolean;
  touched: { requests: number; work: number };
  warning: string;
}

export class Remote {
  readonly #url: string;
  readonly #authorization: string;
  readonly #bearer: string | null;

  constructor({ url, tokenFile, user }: RemoteOptions, password: string) {
    this.#url = url.replace(/\/$/, '');
    this.#bearer = tokenFile === null ? null : `Bearer ${readFileSync(tokenFile, 'utf8').trim()}`;
    this.#authorization = this.#bearer ?? `Basic ${Buffer.from(`${user}:${password}`).toString('base64')}`;
  }

  /** Throws an Error that says what to do when it does not answer, or not with 200. */
  async status(): Promise<Status> {
    return (await this.#ask('/status.json', { headers: this.#readHeaders() })) as Status;
  }

  /** Who shares what since then (wall-clock ms). Throws as `status`. */
  async coupling(since: number): Promise<Coupling> {
    return (await this.#ask(`/coupling.json?since=${since}`, { headers: this.#readHeaders() })) as Coupling;
  }

  /** Why the request with this id was refused. Throws as `status`. */
  async explain(id: number): Promise<RefusalRecord> {
    return (await this.#ask(`/refusals/${id}`, { headers: this.#readHeaders() })) as RefusalRecord;
  }

  #readHeaders(): Record<string, string> {
    return this.#bearer === null ? {} : { authorization: this.#bearer };
  }

  /** Sets a switch, or only says what it would touch. Throws as `status`. */
  async setSwitch(
    name: string,
    wish: { state: string; for?: string | undefined; reason?: string | undefined; dryRun?: boolean },
  ): Promise<SwitchAnswer> {
    const headers = { 'content-type': 'application/json', authorization: this.#authorization };
    return (await this.#ask(`/switches/${encodeURIComponent(name)}`, {
      method: 'POST',
      headers,
      body: JSON.stringify(wish),
    })) as SwitchAnswer;
  }

  /** Another process takes over; gives its process id. */
  async upgrade(): Promise<number> {
    const headers = { 'content-type': 'application/json', authorization: this.#authorization };
    return ((await this.#ask('/upgrade', { method: 'POST', headers, body: '{}' })) as { pid: number }).pid;
  }

  async #ask(path: string, init: RequestInit): Promise<unknown> {
    let response: Response;
    try {
      response = await fetch(this.#url + path, init);
    } catch (thrown) {
      const cause = (thrown as { cause?: unknown }).cause ?? thrown;
      throw new Error(
        `${this.#url} does not answer (${messageOf(cause)}): is pgweir running, and is this its ops port?`,
      );
    }
    if (!response.ok) throw new Error(`${response.status}: ${(await response.text()).trim()}`);
    return response.json();
  }
}

/** Columns of equal width. */
export function table(head: readonly string[], rows: readonly (readonly (string | number)[])[]): string {
  const all = [head, ...rows.map((row) => row.map(String))];
  const widths = head.map((_, at) => Math.max(...all.map((row) => row[at]!.length)));
  const line = (row: readonly string[]) =>
    row
      .map((cell, at) => cell.padEnd(widths[at]!))
      .join('  ')
      .trimEnd();
  return all.map(line).join('\n');
}

const word = (value: string | number) => (typeof value === 'number' ? percent(value) : value);

export function switchTable({ switches, isPassthrough }: Status): string {
  const rows = switches.map((each) => [
    each.name,
    each.class ?? '(match)',
    word(each.position),
    word(each.passes),
    percent(each.requests),
    percent(each.work),
    each.until ?? '',
    each.actor ?? '',
    each.reason ?? '',
  ]);
  const head = ['switch', 'class', 'state', 'passes', 'requests', 'work', 'until', 'actor', 'reason'];
  return `${table(head, rows)}${isPassthrough ? '\n\npassthrough is on: no admission, no sharing, plain pooling' : ''}`;
}

function ledgerTable({ ledgers }: Status): string {
  const shown = [
    'ledger',
    'host',
    'mode',
    'zone',
    'balance',
    'lower',
    'reserve',
    'exhaustion_s',
    'fits',
    'sample_age_s',
    'missing',
  ];
  return table(
    shown,
    ledgers.map((ledger) => shown.map((name) => ledger[name] ?? '')),
  );
}

function cacheTable({ caches }: Status): string {
  const shown = [
    'database',
    'mode',
    'hears',
    'lag_ms',
    'hit_ratio',
    'hits',
    'stale',
    'stale_on_error',
    'misses',
    'filling',
    'saved_ms',
    'backend',
    'problem',
  ];
  return table(
    shown,
    caches.map((cache) => shown.map((name) => cache[name] ?? '')),
  );
}

/** The verdict, and what is behind it. */
function verdictText({ verdict: { line, findings } }: Status): string {
  const told = findings.map(({ level, what, does, todo }) => [level, what, does, todo === '' ? '' : `→ ${todo}`]);
  return told.length < 1 ? line : `${line}\n\n${table(['level', 'what', 'pgweir already', 'you could'], told)}`;
}

export function statusText(status: Status): string {
  const { clients, pools, hosts, classes } = status;
  const flags = [
    status.isReady ? 'ready' : 'NOT READY',
    ...(status.isPaused ? ['PAUSED'] : []),
    ...(status.isReloadOk ? [] : ['THE LAST RELOAD FAILED']),
    ...(status.bugs > 0 ? [`${status.bugs} BUGS`] : []),
  ];
  return [
    verdictText(status),
    `pgweir ${status.version}, up ${status.uptime} s: ${flags.join(', ')}; admission ${status.admission}`,
    `clients ${clients.now} of ${clients.max}, ${clients.held} in the tarpit`,
    table(
      ['database', 'user', 'mode', 'clients', 'waiting', 'active', 'idle', 'pinned', 'failure'],
      pools.map((pool) => [
        pool.database,
        pool.user,
        pool.mode,
        pool.clients,
        pool.waiting,
        pool.active,
        pool.idle,
        pool.pinned,
        pool.failure,
      ]),
    ),
    table(
      ['host', 'role', 'connections', 'at work', 'limit', 'slowdown', 'hold', 'problem'],
      hosts.map((host) => [
        host.host,
        host.role ?? '',
        `${host.connections} of ${host.connectionsMax}`,
        host.atWork,
        host.limit ?? 'none',
        host.slowdown.toFixed(2),
        host.hold,
        [...host.breakers, host.problem].filter((text) => text !== '').join(': '),
      ]),
    ),
    table(
      ['class', 'priority', 'host', 'at work', 'waiting', 'offered', 'admitted', 'shed', 'retries'],
      classes.map((each) => [
        each.name,
        each.priority,
        each.host,
        each.atWork,
        `${each.waiting}${each.isOverloaded ? ' overloaded' : ''}`,
        each.offered,
        each.admitted,
        Object.entries(each.shed)
          .filter(([, count]) => count > 0)
          .map(([reason, count]) => `${reason} ${count}`)
          .join(', ') || 0,
        each.retries,
      ]),
    ),
    ...(status.ledgers.length > 0 ? [ledgerTable(status)] : []),
    ...(status.caches.length > 0 ? [cacheTable(status)] : []),
    switchTable(status),
  ].join('\n\n');
}
