/**
 * `pgweir top`: the status on one screen of a terminal, once a second. Pure but for `runTop`. Called by cli.
 *
 *     AMBER: 1 h 52 min of cpu of db:5432 left at this rate; …
 *     clients 812 of 10000 · 2140 queries/s · late 1 ms
 *     RESERVE  balance bar …   HOST  at work/limit …   CLASS offered admitted shed …   POOL …   EVENTS …
 *
 * The one idea: what does not fit is cut off at the bottom, so the most important comes first.
 */
import type { WriteStream } from 'node:tty';
import { messageOf } from '../util/errors.ts';
import { type Remote, table } from './remote.ts';
import type { Status } from './status.ts';
import { spanOf } from './verdict.ts';

const EVERY_MS = 1_000;
const BAR = 20;
const EVENTS_SHOWN = 8;
const ESC = '\u001b[';
/** The alternate screen, without a cursor; and back. */
const ENTER = `${ESC}?1049h${ESC}?25l`;
const LEAVE = `${ESC}?25h${ESC}?1049l`;
const COLORS: Readonly<Record<string, string>> = { GREEN: '42;97', AMBER: '43;30', RED: '41;97', BLACK: '40;91' };

/** The screen as lines; `before` is the status of a moment ago, for rates. */
export function screenOf(status: Status, before: Status | null, { width = 120, isColored = false } = {}): string[] {
  const { verdict, clients, hosts, classes, pools, ledgers, caches, events } = status;
  const seconds = before === null ? 0 : status.uptime - before.uptime;
  const paint = (code: string, text: string) => (isColored ? `${ESC}${code}m${text}${ESC}0m` : text);
  const head = [
    `clients ${clients.now} of ${clients.max}`,
    ...(seconds > 0 && before !== null ? [`${Math.round((status.queries - before.queries) / seconds)} queries/s`] : []),
    `late ${status.lagMs.toFixed(0)} ms`,
    `admission ${status.admission}`,
    `up ${spanOf(status.uptime)}`,
  ].join(' · ');
  const cut = (line: string) => (line.length > width ? `${line.slice(0, width - 1)}…` : line);
  const part = (rows: readonly (readonly (string | number)[])[], titles: readonly string[]) =>
    rows.length === 0
      ? []
      : [
          '',
          ...table(titles, rows)
            .split('\n')
            .map((line, at) => (at === 0 ? paint('1', cut(line)) : cut(line))),
        ];
  return [
    paint(COLORS[verdict.level] ?? '0', cut(verdict.line)),
    cut(head),
    ...verdict.findings.slice(1, 4).map(({ level, what }) => cut(`  ${level} ${what}`)),
    ...part(
      ledgers.map((each) => [
        `${each.ledger} of ${each.host}`,
        barOf(each.balance, each.capacity),
        each.zone ?? '',
        typeof each.exhaustion_s === 'number' ? spanOf(each.exhaustion_s) : 'ever',
        each.work_limit ?? 'no limit',
        each.mode ?? '',
      ]),
      ['RESERVE', 'balance', 'zone', 'lasts for', 'work limit', 'mode'],
    ),
    ...part(
      hosts.map((host) => [
        host.host,
        host.role ?? '',
        `${host.atWork} of ${host.limit === null ? 'no limit' : host.limit.toFixed(0)}`,
        `${host.slowdown.toFixed(2)} ×`,
        `${host.connections} of ${host.connectionsMax}`,
        host.hold,
        host.breakers.join(', '),
      ]),
      ['HOST', 'role', 'at work', 'slowdown', 'connections', 'hold', 'breakers'],
    ),
    ...part(
      classes.map((each) => [
        each.name,
        each.priority,
        each.atWork,
        each.waiting,
        each.rates.offered.toFixed(1),
        each.rates.admitted.toFixed(1),
        each.rates.shed.toFixed(1),
        each.meanMs.toFixed(1),
      ]),
      ['CLASS', 'priority', 'at work', 'waiting', 'offered/s', 'admitted/s', 'shed/s', 'mean ms'],
    ),
    ...part(
      pools.map((each) => [
        `${each.database}/${each.user}`,
        each.clients,
        each.waiting,
        each.active,
        each.idle,
        each.pinned,
        each.failure,
      ]),
      ['POOL', 'clients', 'waiting', 'active', 'idle', 'pinned', 'failure'],
    ),
    ...part(
      caches.map((each) => [
        each.database ?? '',
        each.mode ?? '',
        each.hit_ratio ?? '',
        each.backend ?? '',
        each.problem ?? '',
      ]),
      ['CACHE', 'mode', 'hits', 'backend', 'problem'],
    ),
    ...part(
      events.slice(-EVENTS_SHOWN).map(({ at, kind, subject, what }) => [at.slice(11, 19), kind, subject, what]),
      ['EVENT', 'kind', 'of', 'what'],
    ),
  ];
}

function barOf(balance: unknown, capacity: unknown): string {
  if (typeof balance !== 'number' || typeof capacity !== 'number' || capacity <= 0) return 'not known';
  const share = Math.max(0, Math.min(1, balance / capacity));
  const full = Math.round(share * BAR);
  return `${'#'.repeat(full)}${'.'.repeat(BAR - full)} ${Math.round(100 * share)} %`;
}

/** Shows the screen until it is interrupted; `isOnce`: one screen, and back. Throws what `Remote.status` throws. */
export async function runTop(remote: Remote, out: WriteStream, isOnce: boolean): Promise<void> {
  const isColored = out.isTTY === true && process.env.NO_COLOR === undefined;
  let before: Status | null = null;
  const draw = async () => {
    const status = await remote.status();
    const width = out.columns ?? 120;
    const lines = screenOf(status, before, { width, isColored });
    before = status;
    return lines;
  };
  if (isOnce || out.isTTY !== true) {
    out.write(`${(await draw()).join('\n')}\n`);
    return;
  }
  const leave = () => {
    out.write(LEAVE);
    process.exit(0);
  };
  out.write(ENTER);
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, leave);
  for (;;) {
    const lines = await draw().catch((thrown: unknown) => [messageOf(thrown)]);
    out.write(
      `${ESC}H${lines
        .slice(0, (out.rows ?? 40) - 1)
        .map((line) => `${line}${ESC}K`)
        .join('\n')}${ESC}J`,
    );
    await new Promise((done) => setTimeout(done, EVERY_MS));
  }
}
