/**
 * Is the database in danger, how long does it have, what is pgweir doing about it, and what can be done: one line for people at three in the
 * morning, and the findings behind it. Pure. Called by ops/status; shown by the dashboard, `pgweir status` and `pgweir top`.
 *
 * The one idea: the worst finding is the verdict; those behind it are told in the order of their weight.
 */
import type { Zone } from '../credits/zone.ts';
import type { Status } from './status.ts';

/** The zones of ledgers, for the whole: GREEN, nothing is to be done; AMBER, look at it; RED, now; BLACK, it has happened. */
type Level = Zone;

interface Finding {
  level: Level;
  what: string;
  /** What pgweir does about it already; ''. */
  does: string;
  /** What somebody could do; ''. */
  todo: string;
}

export interface Verdict {
  level: Level;
  /** `AMBER: 1 h 52 min of cpu of db:5432 left at this rate; what is not critical gets 1.4 servers`. */
  line: string;
  findings: Finding[];
}

/** What of a status it is made from. */
export type Judged = Omit<Status, 'verdict' | 'events'>;

const LEVELS: readonly Level[] = ['GREEN', 'AMBER', 'RED', 'BLACK'];
/** s until a reserve is reached, below which somebody should look at it, and do something. */
const SOON_S = 2 * 3_600;
const NOW_S = 1_800;
/** Share of what is asked for that is shed. */
const SHED_SHARE = 0.01;
const LAG_MS = 100;

export function verdictOf(status: Judged): Verdict {
  const findings = [
    ...ofProxy(status),
    ...ofHosts(status),
    ...ofLedgers(status),
    // A switch is why its class is refused.
    ...ofSwitches(status),
    ...ofClasses(status),
    ...ofPools(status),
    ...ofCaches(status),
  ].sort((a, b) => LEVELS.indexOf(b.level) - LEVELS.indexOf(a.level));
  const [worst] = findings;
  if (worst === undefined) return { level: 'GREEN', line: `GREEN: ${calm(status)}`, findings };
  const also = findings.filter(({ does }) => does !== '').map(({ does }) => does);
  return { level: worst.level, line: `${worst.level}: ${[worst.what, ...new Set(also)].join('; ')}`, findings };
}

function calm({ hosts, ledgers }: Judged): string {
  const limits = hosts.map(
    ({ host, atWork, limit }) => `${atWork} at work on ${host}${limit === null ? '' : ` of ${limit.toFixed(0)}`}`,
  );
  const left = ledgers.map((each) => `${each.ledger} at ${shareOf(each)}`);
  return [...left, ...limits].join(', ') || 'nothing to do yet';
}

function ofProxy({ isReady, isReloadOk, isPaused, isPassthrough, lagMs }: Judged): Finding[] {
  return [
    finding(!isReady, 'AMBER', 'pgweir is not ready: it is draining', '', 'wait for it to end, or start another'),
    finding(isPaused, 'AMBER', 'paused: requests wait', '', 'RESUME in the console'),
    finding(isPassthrough, 'AMBER', 'passthrough is on: nothing is limited', '', 'pgweir switch passthrough off'),
    finding(!isReloadOk, 'AMBER', 'the last reload failed', 'the old configuration is in force', 'pgweir check FILE'),
    finding(
      lagMs > LAG_MS,
      'AMBER',
      `pgweir itself is late by ${lagMs.toFixed(0)} ms`,
      '',
      'it has too little processor: look for neighbours, or run more instances',
    ),
  ].flat();
}

function ofHosts({ hosts }: Judged): Finding[] {
  return hosts.flatMap(({ host, hold, problem, breakers, role }) => [
    ...finding(
      role !== 'standby' && (hold === 'holding' || hold === 'refusing'),
      hold === 'refusing' ? 'BLACK' : 'RED',
      `no primary behind ${host} can be reached`,
      hold === 'holding' ? 'requests are held' : 'requests are refused',
      'promote a standby: pgweir follows it by itself',
    ),
    ...finding(hold === 'releasing', 'AMBER', `${host} is back`, 'what waited is let go by and by', ''),
    ...finding(
      breakers.length > 0,
      'RED',
      `${host}: ${breakers.join(', ')} (${problem})`,
      'what would fail is refused',
      'the log of the database says why',
    ),
    ...finding(
      role === 'refused',
      'RED',
      `${host} is a primary that must not be: ${problem}`,
      'nothing is sent there',
      'stop it',
    ),
  ]);
}

function ofLedgers({ ledgers }: Judged): Finding[] {
  return ledgers.flatMap((each) => {
    const { ledger, host, zone, exhaustion_s: left, mode, missing, fits, scale_up_s: scaleUp, work_limit: work } = each;
    const name = `${ledger} of ${host}`;
    const isHeld = mode === 'enforce' && typeof work === 'number';
    const does = isHeld
      ? `what is not critical gets ${work.toFixed(1)} servers`
      : `nothing is held back: its mode is ${mode}`;
    // Of a reserve that nothing is known of, the time that it lasts is not known either.
    const isShort = (missing ?? '') === '' && typeof left === 'number' && left < SOON_S;
    const level = worse(zone as Level, isShort ? (left < NOW_S ? 'RED' : 'AMBER') : 'GREEN');
    const what = isShort
      ? `${spanOf(left)} of ${name} left at this rate`
      : `${name} is in its ${zone} zone, at ${shareOf(each)}`;
    return [
      ...finding(
        level !== 'GREEN',
        level,
        what,
        does,
        'switch off what can wait (pgweir switch set CLASS off), or scale up',
      ),
      ...finding(
        fits === 'no',
        'AMBER',
        `what waits does not fit into ${name}`,
        '',
        typeof scaleUp === 'number'
          ? `scale up within ${spanOf(scaleUp)}: no throttle helps`
          : 'scale up: no throttle helps',
      ),
      ...finding(
        missing !== '' && missing !== null,
        'AMBER',
        `nothing is known of ${name} (${missing})`,
        'onMissing holds',
        'look for its metric source in the log',
      ),
    ];
  });
}

function ofClasses({ classes }: Judged): Finding[] {
  const sums = new Map<string, { offered: number; shed: number; priority: string }>();
  for (const { name, priority, rates } of classes) {
    const sum = sums.get(name) ?? { offered: 0, shed: 0, priority };
    sums.set(name, { priority, offered: sum.offered + rates.offered, shed: sum.shed + rates.shed });
  }
  return [...sums].flatMap(([name, { offered, shed, priority }]) =>
    finding(
      shed > SHED_SHARE * offered && shed > 0,
      priority === 'critical' ? 'RED' : 'AMBER',
      `${Math.round((100 * shed) / offered)} % of ${name} is refused`,
      'more is asked for than the database can do',
      'SHOW CLASSES says for what reason',
    ),
  );
}

function ofPools({ pools }: Judged): Finding[] {
  return pools.flatMap(({ database, user, waiting, idle, active, failure }) => [
    ...finding(
      waiting > 0 && idle === 0 && active > 0,
      'AMBER',
      `${waiting} wait for a server of ${database}/${user}`,
      '',
      'SHOW POOLS; SHOW CLASSES: permits far above at_work is somebody idle in a transaction',
    ),
    ...finding(failure !== '', 'AMBER', `servers of ${database}/${user} cannot be opened: ${failure}`, '', ''),
  ]);
}

function ofCaches({ caches }: Judged): Finding[] {
  return caches.flatMap(({ database, backend, problem, mode }) => {
    const [state] = String(backend).split(':');
    const isAway = mode === 'on' && ['open', 'degraded', 'disarmed'].includes(state!);
    return [
      ...finding(
        isAway,
        'AMBER',
        `the shared cache is ${backend}`,
        'misses are metered',
        'is it there? The database carries what it did',
      ),
      ...finding(mode === 'on' && problem !== '', 'AMBER', `the cache of ${database}: ${problem}`, '', 'SHOW CACHE'),
    ];
  });
}

function ofSwitches({ switches }: Judged): Finding[] {
  return switches.flatMap(({ name, position, actor, reason }) =>
    finding(
      actor !== null && position !== 'on',
      'AMBER',
      `${name} is switched to ${typeof position === 'number' ? `${Math.round(100 * position)} %` : position} by ${actor}`,
      '',
      reason === null || reason === '' ? '' : `the reason was: ${reason}`,
    ),
  );
}

function finding(isSo: boolean, level: Level, what: string, does: string, todo: string): Finding[] {
  return isSo ? [{ level, what, does, todo }] : [];
}

function worse(a: Level, b: Level): Level {
  return LEVELS.indexOf(a) > LEVELS.indexOf(b) ? a : b;
}

function shareOf({ balance, capacity }: Record<string, unknown>): string {
  return typeof balance === 'number' && typeof capacity === 'number'
    ? `${Math.round((100 * balance) / capacity)} %`
    : 'an unknown level';
}

/** Seconds as people say them: 40 s, 12 min, 1 h 52 min, 3 d. */
export function spanOf(seconds: number): string {
  if (seconds < 60) return `${Math.round(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 60) return `${minutes} min`;
  if (minutes < 48 * 60) return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
  return `${Math.round(minutes / 1440)} d`;
}
