/** The read caches as people and their tools see them: SHOW CACHE, SHOW CACHE_SHAPES, /status.json, metrics. */
import { armingStates } from '../cache/arming.ts';
import type { Cache } from '../cache/cache.ts';
import type { ShapeRecord } from '../cache/shapes.ts';
import type { Metric } from './metrics.ts';
import type { Snapshot } from './snapshot.ts';

type Row = (string | number | null)[];

/** What may happen to a read that a cache is asked about. */
const cacheOutcomes = [
  'hit',
  'backend_hit',
  'stale',
  'stale_on_error',
  'followed',
  'miss',
  'would_hit',
  'bypassed',
  'refused',
] as const;
type CacheOutcome = (typeof cacheOutcomes)[number];

function outcomesOf({ counts }: Cache): Record<CacheOutcome, number> {
  return {
    hit: counts.hits,
    backend_hit: counts.fromBackend,
    stale: counts.stale,
    stale_on_error: counts.staleOnError,
    followed: counts.followed,
    miss: counts.misses,
    would_hit: counts.would,
    bypassed: counts.bypassed,
    refused: counts.refused,
  };
}

/** Of the reads that may be kept, how many were, or would have been, answered from the cache; from 0 to 1. */
function ratioOf({ counts }: Cache): number {
  const { hits, fromBackend, stale, staleOnError, followed, would } = counts;
  const answered = hits + fromBackend + stale + staleOnError + followed + would;
  return answered + counts.misses === 0 ? 0 : answered / (answered + counts.misses);
}

/** How a cache hears of writes that do not come through the proxy: wal, statistics or none; and why not better. */
function hearingOf(
  { caches, now }: Snapshot,
  database: string,
): { tier: string; lagMs: number | null; problem: string } {
  const senses = caches.sensesOf(database);
  const problem = senses?.schema.problem || senses?.wal?.problem || '';
  const wal = senses?.wal ?? null;
  if (wal === null) return { tier: 'none', lagMs: null, problem };
  return { tier: wal.tier, lagMs: Number.isFinite(wal.lagAt(now)) ? Math.round(wal.lagAt(now)) : null, problem };
}

export const CACHE_COLUMNS = `database, mode, hears, lag_ms n, hits n, stale n, stale_on_error n, followed n, misses n, would_hit n,
  bypassed n, refused n, from_backend n, verified n, differed n, hit_ratio, filling n, filling_max n, unknown_writes n, saved_ms n,
  servers_spared, servers_missed, servers_max n, backend, problem`;

export function cacheRows(snapshot: Snapshot): Row[] {
  return snapshot.caches.all.map((cache) => {
    const { counts, misses, need } = cache;
    const { tier, lagMs, problem } = hearingOf(snapshot, cache.database);
    return [
      cache.database,
      cache.config.mode,
      tier,
      lagMs,
      counts.hits,
      counts.stale,
      counts.staleOnError,
      counts.followed,
      counts.misses,
      counts.would,
      counts.bypassed,
      counts.refused,
      counts.fromBackend,
      counts.verified,
      counts.differed,
      `${(100 * ratioOf(cache)).toFixed(1)}%`,
      cache.filling,
      misses.limit,
      cache.freshness.counts.unknown,
      Math.round(cache.savedMs),
      need.spared.toFixed(1),
      need.missed.toFixed(1),
      misses.max,
      backendOf(snapshot),
      [problem, cache.warning].filter(Boolean).join('; '),
    ];
  });
}

/** The shared cache: its state and why it is not armed; '' without one. */
function backendOf({ caches: { backend, backendProblem } }: Snapshot): string {
  if (backend === null) return backendProblem === '' ? '' : `disarmed: ${backendProblem}`;
  const { state, why } = backend.arming;
  return why === '' ? state : `${state}: ${why}`;
}

export const CACHE_SHAPE_COLUMNS = `database, statement, verdict, hits n, stale n, stale_on_error n, misses n, hit_ratio, usual_ms n, saved_ms n`;
const SHAPES_SHOWN = 200;
const TEXT_SHOWN = 200;

/** What is known of statements by their shape, those first that matter most. */
export function cacheShapeRows({ caches }: Snapshot): Row[] {
  const weight = ({ savedMs, misses, usualMs }: ShapeRecord) => savedMs + misses * usualMs;
  return caches.all.flatMap((cache) =>
    [...cache.shapes]
      .sort((a, b) => weight(b) - weight(a) || b.hits - a.hits)
      .slice(0, SHAPES_SHOWN)
      .map((shape): Row => {
        const answered = shape.hits + shape.stale + shape.staleOnError;
        return [
          cache.database,
          shape.text.slice(0, TEXT_SHOWN),
          verdictOf(shape),
          shape.hits,
          shape.stale,
          shape.staleOnError,
          shape.misses,
          answered + shape.misses === 0 ? '' : `${((100 * answered) / (answered + shape.misses)).toFixed(1)}%`,
          Number(shape.usualMs.toFixed(2)),
          Math.round(shape.savedMs),
        ];
      }),
  );
}

function verdictOf({ judgement, distrust }: ShapeRecord): string {
  if (distrust !== '') return distrust;
  switch (judgement.kind) {
    case 'kept':
      return `kept for ${judgement.policy.ttl / 1000} s, consistency ${judgement.policy.consistency}`;
    case 'refused':
      return `not kept: ${judgement.why}`;
    case 'pending':
      return 'not known yet';
    default:
      return judgement satisfies never;
  }
}

export const cacheMetrics: readonly Metric[] = [
  {
    name: 'pgweir_cache_reads_total',
    help: 'Reads that a cache was asked about: hit; backend_hit, in the shared cache; stale, while it is asked for again; stale_on_error, because the database could not answer; followed, answered together with somebody else’s; miss; would_hit, in mode observe; bypassed, not to be kept; refused, too many misses.',
    type: 'counter',
    labels: ['database', 'outcome'],
    read: ({ caches }) =>
      caches.all.flatMap((cache) =>
        cacheOutcomes.map((outcome) => [{ database: cache.database, outcome }, outcomesOf(cache)[outcome]] as const),
      ),
  },
  {
    name: 'pgweir_cache_table_reads_total',
    help: 'Reads of a table that were answered from the cache (hit), or could have been (miss).',
    type: 'counter',
    labels: ['database', 'table', 'outcome'],
    read: ({ caches }) =>
      caches.all.flatMap(({ database, tables }) =>
        [...tables].flatMap(([table, { hits, misses }]) => [
          [{ database, table, outcome: 'hit' }, hits] as const,
          [{ database, table, outcome: 'miss' }, misses] as const,
        ]),
      ),
  },
  {
    name: 'pgweir_cache_bytes',
    help: 'Memory that answers take.',
    type: 'gauge',
    labels: [],
    read: ({ caches }) => [[{}, caches.store.bytes]],
  },
  {
    name: 'pgweir_cache_entries',
    help: 'Answers in memory.',
    type: 'gauge',
    labels: [],
    read: ({ caches }) => [[{}, caches.store.size]],
  },
  {
    name: 'pgweir_cache_entries_total',
    help: 'Answers stored, rejected (less wanted than what would have to go), evicted, and dropped because they were too old.',
    type: 'counter',
    labels: ['outcome'],
    read: ({ caches: { store } }) =>
      (['stored', 'rejected', 'evicted', 'expired'] as const).map(
        (outcome) => [{ outcome }, store.counts[outcome]] as const,
      ),
  },
  {
    name: 'pgweir_cache_fills_active',
    help: 'Questions that the database is being asked for the cache at the moment, and so many may be.',
    type: 'gauge',
    labels: ['database', 'what'],
    read: ({ caches }) =>
      caches.all.flatMap(({ database, misses }) => [
        [{ database, what: 'active' }, misses.active] as const,
        [{ database, what: 'waiting' }, misses.waiting] as const,
        [{ database, what: 'limit' }, misses.limit] as const,
      ]),
  },
  {
    name: 'pgweir_cache_stale_age_seconds',
    help: 'Age of the oldest stale answer that was given since the last scrape.',
    type: 'gauge',
    labels: ['database'],
    read: ({ caches }) =>
      caches.all.map((cache) => [{ database: cache.database }, cache.takeOldestStaleMs() / 1000] as const),
  },
  {
    name: 'pgweir_cache_verified_total',
    help: 'Answers from the cache that were compared with those of the database.',
    type: 'counter',
    labels: ['database', 'found'],
    read: ({ caches }) =>
      caches.all.flatMap(({ database, counts }) => [
        [{ database, found: 'same' }, counts.verified] as const,
        [{ database, found: 'other' }, counts.differed] as const,
      ]),
  },
  {
    name: 'pgweir_cache_backend_state',
    help: '1 for the state of the shared cache: disarmed, probing, ramping, armed, degraded, open.',
    type: 'gauge',
    labels: ['state'],
    read: ({ caches: { backend, backendProblem } }) =>
      backend === null && backendProblem === ''
        ? []
        : armingStates.map((state) => [{ state }, Number((backend?.arming.state ?? 'disarmed') === state)] as const),
  },
  {
    name: 'pgweir_cache_backend_total',
    help: 'What was asked of the shared cache and what came of it: reads, hits, misses; late, beyond its budget; errors; full, not asked because too much was under way; wrong, damaged or another’s; foreign, of another version; writes, write_errors.',
    type: 'counter',
    labels: ['what'],
    read: ({ caches: { backend } }) =>
      backend === null
        ? []
        : Object.entries(backend.counts).map(
            ([what, count]) => [{ what: what === 'writeErrors' ? 'write_errors' : what }, count] as const,
          ),
  },
  {
    name: 'pgweir_cache_saved_seconds_total',
    help: 'Time of servers that answers from the cache have saved, or would have.',
    type: 'counter',
    labels: ['database'],
    read: ({ caches }) => caches.all.map((cache) => [{ database: cache.database }, cache.savedMs / 1000] as const),
  },
  {
    name: 'pgweir_cache_servers',
    help: 'Servers of the database, means of about a minute: spared by hits; missed, which misses need, refused ones too; max, which misses may have. Spared and missed together would be needed were the cache lost.',
    type: 'gauge',
    labels: ['database', 'what'],
    read: ({ caches }) =>
      caches.all.flatMap(({ database, need, misses }) => [
        [{ database, what: 'spared' }, need.spared] as const,
        [{ database, what: 'missed' }, need.missed] as const,
        [{ database, what: 'max' }, misses.max] as const,
      ]),
  },
  {
    name: 'pgweir_cache_writes_total',
    help: 'Writes that caches have heard of: known, with their tables; unknown, which may have written anything.',
    type: 'counter',
    labels: ['database', 'what'],
    read: ({ caches }) =>
      caches.all.flatMap(({ database, freshness: { counts } }) => [
        [{ database, what: 'known' }, counts.writes] as const,
        [{ database, what: 'unknown' }, counts.unknown] as const,
      ]),
  },
  {
    name: 'pgweir_cache_changes_lag_seconds',
    help: 'Since when not all writes that bypass the proxy have been heard of; absent when none is.',
    type: 'gauge',
    labels: ['database', 'tier'],
    read: (snapshot) =>
      snapshot.caches.all.flatMap(({ database }) => {
        const { tier, lagMs } = hearingOf(snapshot, database);
        return lagMs === null ? [] : [[{ database, tier }, lagMs / 1000] as const];
      }),
  },
];
