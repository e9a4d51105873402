/**
 * What has happened, newest last: for whoever looks for the cause of what the curves show. Made by app; shown by SHOW EVENTS, /events.json and the
 * dashboard; others add theirs by POST /events.
 *
 * The one idea: whatever has a state is looked at once a second, and what differs from the last look has happened. So nothing that
 * changes needs to know of this list. A state that lasts for less than a second is in the log, not here.
 *
 * Invariant: at most EVENTS_MAX are kept.
 */
import { createHash } from 'node:crypto';
import type { Config } from '../config/schema.ts';
import { breakersOf } from './hosts.ts';
import type { Snapshot } from './snapshot.ts';
import { percent, type SwitchRow } from './switchboard.ts';

export type EventKind = 'start' | 'reload' | 'switch' | 'role' | 'hold' | 'breaker' | 'zone' | 'cache' | 'note';

export interface Happening {
  /** Counts from 1. */
  id: number;
  /** ISO 8601. */
  at: string;
  kind: EventKind;
  /** What it happened to; ''. */
  subject: string;
  what: string;
  /** Who did it; '' when nobody did, or nobody is known. */
  actor: string;
}

/** Something with a state: its kind, itself, its state, and what more there is to say. */
type State = readonly [kind: EventKind, subject: string, state: string, why: string, actor?: string];

const EVENTS_MAX = 500;
const TEXT_MAX = 500;

export class Events {
  readonly #list: Happening[] = [];
  readonly #states = new Map<string, string>();
  readonly #wall: () => number;
  #last = 0;

  constructor(wall: () => number) {
    this.#wall = wall;
  }

  /** All that are kept, or those after the one with this id. */
  since(id = 0): readonly Happening[] {
    return this.#list.filter((each) => each.id > id);
  }

  add(kind: EventKind, what: string, { subject = '', actor = '' } = {}): Happening {
    const happening = {
      id: ++this.#last,
      at: new Date(this.#wall()).toISOString(),
      kind,
      subject: subject.slice(0, TEXT_MAX),
      what: what.slice(0, TEXT_MAX),
      actor: actor.slice(0, TEXT_MAX),
    };
    this.#list.push(happening);
    if (this.#list.length > EVENTS_MAX) this.#list.shift();
    return happening;
  }

  /** Adds what has changed since the last look. What is seen for the first time has not changed. */
  look(snapshot: Snapshot, switches: readonly SwitchRow[]): void {
    const seen = new Set<string>();
    for (const [kind, subject, state, why, actor = ''] of statesOf(snapshot, switches)) {
      const key = `${kind} ${subject}`;
      seen.add(key);
      const before = this.#states.get(key);
      if (before === state) continue;
      this.#states.set(key, state);
      if (before !== undefined)
        this.add(kind, `${before} → ${state}${why === '' ? '' : `: ${why}`}`, { subject, actor });
    }
    for (const key of this.#states.keys()) if (!seen.has(key)) this.#states.delete(key);
  }
}

function statesOf(snapshot: Snapshot, switches: readonly SwitchRow[]): State[] {
  const { clusters, credits, caches } = snapshot;
  return [
    ...[...credits].flatMap(([host, { ledgers }]) =>
      ledgers.map(({ config, zone, missing }): State => ['zone', `${config.name} of ${host}`, zone, missing]),
    ),
    ...breakersOf(snapshot).map(
      ({ host, breaker, state, why }): State => ['breaker', `${breaker} of ${host}`, state, why],
    ),
    ...clusters.flatMap(({ roles, hold }): State[] => [
      ['hold', [...roles.keys()].join(), hold.state, ''],
      ...[...roles].map(([address, { role, why }]): State => ['role', address, role ?? 'unknown', why]),
    ]),
    ...(caches.backend === null
      ? []
      : [['cache', 'shared cache', caches.backend.arming.state, caches.backend.arming.why] as State]),
    ...caches.all.map(({ database }): State => {
      const wal = caches.sensesOf(database)?.wal ?? null;
      return ['cache', `changes of ${database}`, wal?.tier ?? 'none', wal?.problem ?? ''];
    }),
    ...switches.map(
      ({ name, position, setting }): State => [
        'switch',
        name,
        typeof position === 'number' ? percent(position) : position,
        setting?.reason ?? '',
        setting?.actor ?? '',
      ],
    ),
    ['switch', 'passthrough', snapshot.isPassthrough ? 'on' : 'off', ''],
    ['switch', 'pause', snapshot.isPaused ? 'on' : 'off', ''],
  ];
}

/** What tells configurations apart, short enough to be read out. */
export function hashOf(config: Config): string {
  return createHash('sha256').update(JSON.stringify(config)).digest('hex').slice(0, 12);
}

/** The paths of the keys whose values differ; their values may be secret. */
export function changedKeys(before: unknown, after: unknown, path = ''): string[] {
  if (JSON.stringify(before) === JSON.stringify(after)) return [];
  const [a, b] = [before, after].map((each) => (isRecord(each) ? each : null));
  if (a == null || b == null) return [path];
  const names = new Set([...Object.keys(a), ...Object.keys(b)]);
  return [...names].flatMap((name) => changedKeys(a[name], b[name], path === '' ? name : `${path}.${name}`));
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}
