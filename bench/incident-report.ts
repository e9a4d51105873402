/** What became of each contender in bench/incident-b: a table with verdicts, and the curves of all balances. */
import type { View } from './incident-b.ts';
import type { Point } from './metered.ts';
import { type Panel, svg } from './plot.ts';
import { percent } from './stats.ts';

export interface Outcome {
  variant: string;
  contender: string;
  /** What limited the processor of the database. */
  how: string;
  /** Critical work and what bypasses the proxy may need more than is earned, or nobody can know. */
  isUnderReserveAllowed: boolean;
  least: number;
  atZeroHours: number;
  /** Of all critical requests, and of those of the worst tenth of the time. */
  inTime: number;
  worst: number;
  /** Jobs that were refused, each time. */
  refused: number;
  /** Credits of backlog done, and what the law of conservation allows above the reserve. */
  done: number;
  possible: number;
  /** 95th percentile of |estimate − balance| as a share of the capacity; null: no estimate. */
  error: number | null;
  /** What was forecast an hour before the reserve was reached, as a multiple of the time that was left; null: it never was. */
  forecast: number | null;
  /** 'It fits', at the first sample; and what is right. Null: nobody says. */
  verdict: boolean | null;
  rightVerdict: boolean;
  /** Credits. */
  start: number;
  /** When the verdict turned AMBER or RED and named the time that is left, and when nothing was left, in s of life; null: never. */
  amber: number | null;
  empty: number | null;
  /** By how much the clients were late, 99th percentile. */
  lateMs: number;
  /** Times in hours. */
  points: readonly Point[];
  views: readonly View[];
}

const HEAD = [
  'variant',
  'contender',
  'least balance',
  'hours at 0',
  'critical in time',
  'in its worst tenth',
  'backlog done, of possible',
  'refusals',
  'estimate: error p95',
  'forecast 1 h before',
  'fits, at the start',
  'AMBER or RED by the time left; empty',
];

const inHours = (seconds: number | null) => (seconds === null ? 'never' : `${(seconds / 3600).toFixed(2)} h`);

export function report(outcomes: readonly Outcome[], reserve: number) {
  const rows = outcomes.map((each) => {
    const { least, atZeroHours, inTime, worst, done, possible, refused, error, forecast, verdict, rightVerdict } = each;
    return [
      each.variant,
      each.contender,
      least.toFixed(1),
      atZeroHours.toFixed(2),
      percent(inTime),
      percent(worst),
      `${done.toFixed(0)} of ${possible.toFixed(0)} (${percent(done / possible)})`,
      String(refused),
      error === null ? '' : percent(error),
      forecast === null ? '' : `${forecast.toFixed(2)} h`,
      verdict === null ? '' : `${verdict ? 'yes' : 'no'}${verdict === rightVerdict ? '' : ' (WRONG)'}`,
      `${inHours(each.amber)}; ${inHours(each.empty)}`,
    ];
  });
  const lines = [HEAD, HEAD.map(() => '---'), ...rows].map((cells) => `| ${cells.join(' | ')} |`);
  const late = Math.max(...outcomes.map(({ lateMs }) => lateMs));
  const starts = [...new Set(outcomes.map(({ start }) => start.toFixed(0)))].join(' or ');
  const hows = [...new Set(outcomes.map(({ how }) => how))].join(', ');
  const table = `${lines.join('\n')}\n\nReserve ${reserve.toFixed(1)} credits, ${starts} at the start; ${hows}; clients late by ${late.toFixed(1)} ms at most (p99).\n`;
  const names = [...new Set(outcomes.map(({ variant }) => variant))];
  const chart = svg(
    'Balance of burst credits over hours, by contender and variant',
    names.map((name) => panelOf(name, outcomes, reserve)),
  );
  return { table, chart };
}

function panelOf(variant: string, outcomes: readonly Outcome[], reserve: number): Panel {
  const own = outcomes.filter((each) => each.variant === variant);
  const start = own[0]?.start ?? 0;
  const right = Math.max(1, ...own.flatMap(({ points }) => points.map(({ at }) => at)));
  const every = right > 12 ? 6 : 1;
  const marks = Array.from({ length: Math.floor(right / every) + 1 }, (_, n) => ({
    x: n * every,
    text: `${n * every} h`,
  }));
  const most = Math.max(start, ...own.flatMap(({ points }) => points.map(({ balance }) => balance)));
  return {
    title: `Credits left: ${variant}`,
    series: own.map(({ contender, points }) => {
      const step = Math.ceil(points.length / 200);
      return {
        name: contender,
        points: points.filter((_, index) => index % step === 0).map(({ at, balance }) => [at, balance] as const),
      };
    }),
    right,
    top: 1.05 * most,
    rules: [
      { y: start, text: start.toFixed(0) },
      { y: reserve, text: 'reserve' },
      { y: 0, text: '0' },
    ],
    marks,
  };
}
