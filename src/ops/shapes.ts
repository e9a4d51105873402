/** Statements by what they cost the database in the last hour, over all services: a part of the status, SHOW SHAPES. */
import type { Usage } from '../client/usage.ts';
import type { Snapshot } from './snapshot.ts';

export interface ShapeStatus {
  /** Without values; what is not known goes together. */
  statement: string;
  /** The service that asks for it most. */
  service: string;
  count: number;
  /** Of servers. */
  ms: number;
  meanMs: number;
  /** Of all that was asked for, from 0 to 1: in time, and in work as it would be in calm, which is what spends credits. */
  share: number;
  workShare: number;
  /** Credits that it has burned, of the ledger that is next to its end; null: its host has none. */
  credits: number | null;
}

const SHOWN = 20;
const UNKNOWN = '(several at once, or not known)';

/** Adding up takes time, and a status is asked for every second by each dashboard. */
const AGE_MAX_MS = 5_000;
const last = new WeakMap<Usage, { at: number; shapes: ShapeStatus[] }>();

/** The first by time and the first by work; a few seconds old. */
export function topShapes(snapshot: Pick<Snapshot, 'usage' | 'credits' | 'now'>): ShapeStatus[] {
  const { usage, now } = snapshot;
  const known = last.get(usage);
  if (known !== undefined && now - known.at < AGE_MAX_MS) return known.shapes;
  const shapes = findTop(snapshot);
  last.set(usage, { at: now, shapes });
  return shapes;
}

function findTop({ usage, credits }: Pick<Snapshot, 'usage' | 'credits'>): ShapeStatus[] {
  const shapes = addUp(usage);
  const sumOf = (key: 'ms' | 'costMs') =>
    Math.max(
      1e-9,
      [...shapes.values()].reduce((sum, shape) => sum + shape[key], 0),
    );
  const all = [...shapes.values()];
  const ms = sumOf('ms');
  const costMs = sumOf('costMs');
  const top = new Set([
    ...all.toSorted((a, b) => b.ms - a.ms).slice(0, SHOWN),
    ...all.toSorted((a, b) => b.costMs - a.costMs).slice(0, SHOWN),
  ]);
  return [...top]
    .sort((a, b) => b.ms - a.ms)
    .map((shape) => {
      const kappa = kappaOf(credits, shape.host);
      return {
        statement: shape.statement,
        service: shape.service,
        count: Math.round(shape.count),
        ms: Math.round(shape.ms),
        meanMs: shape.ms / Math.max(1, shape.count),
        share: shape.ms / ms,
        workShare: shape.costMs / costMs,
        credits: kappa === null ? null : (kappa * shape.costMs) / 1000,
      };
    });
}

interface Found {
  statement: string;
  host: string;
  service: string;
  most: number;
  count: number;
  ms: number;
  costMs: number;
}

function addUp(usage: Usage): Map<string, Found> {
  const shapes = new Map<string, Found>();
  const rest = usage.shareOfBefore;
  for (const { name, uses } of usage.services) {
    for (const { number, nature, now, before } of uses) {
      const ms = now.ms + rest * before.ms;
      const key = `${name.host}/${number}`;
      const statement = number === 0 ? UNKNOWN : (nature?.text ?? UNKNOWN);
      const shape = shapes.get(key) ?? {
        statement,
        host: name.host,
        service: '',
        most: -1,
        count: 0,
        ms: 0,
        costMs: 0,
      };
      shapes.set(key, shape);
      shape.count += now.count + rest * before.count;
      shape.ms += ms;
      shape.costMs += now.costMs + rest * before.costMs;
      if (ms > shape.most) Object.assign(shape, { most: ms, service: name.application || name.user });
    }
  }
  return shapes;
}

/** What a second of work spends of the ledger of one of these hosts (addresses, joined by commas) that is next to its end. */
function kappaOf(credits: Snapshot['credits'], hosts: string): number | null {
  const views = hosts.split(',').flatMap((host) => credits.get(host)?.ledgers ?? []);
  const first = views.toSorted((a, b) => a.forecast.exhaustion - b.forecast.exhaustion)[0];
  return first?.learned.kappa ?? null;
}

export const SHAPE_COLUMNS = 'statement, service, count n, ms n, mean_ms n, share n, work_share n, credits n';

export function shapeRows(snapshot: Pick<Snapshot, 'usage' | 'credits' | 'now'>): (string | number | null)[][] {
  return topShapes(snapshot).map((each) => [
    each.statement,
    each.service,
    each.count,
    each.ms,
    each.meanMs,
    each.share,
    each.workShare,
    each.credits,
  ]);
}
