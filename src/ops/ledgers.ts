/** The reserves of hosts as people and their tools see them: metrics, rows of SHOW LEDGERS, and a part of the status. */
import type { LedgerView } from '../credits/host.ts';
import { zones } from '../credits/zone.ts';
import type { Metric } from './metrics.ts';
import type { Snapshot } from './snapshot.ts';

const ledgerLabels = ['host', 'ledger'];

function perLedger(name: string, help: string, value: (view: LedgerView) => number): Metric {
  return {
    name,
    help,
    type: 'gauge',
    labels: ledgerLabels,
    read: (snapshot) =>
      views(snapshot).map(([host, view]) => [{ host, ledger: view.config.name }, value(view)] as const),
  };
}

function views({ credits }: Snapshot): [host: string, view: LedgerView][] {
  return [...credits].flatMap(([host, { ledgers }]) => ledgers.map((view): [string, LedgerView] => [host, view]));
}

export const creditMetrics: readonly Metric[] = [
  perLedger('pgweir_credit_balance', 'Estimate of what is left of the reserve, in its own unit.', ({ estimate }) =>
    estimate === null ? Number.NaN : estimate.balance,
  ),
  perLedger(
    'pgweir_credit_balance_lower',
    'Lower bound of it (two standard deviations), which budgets are made from.',
    (view) => (view.estimate === null ? Number.NaN : view.estimate.lower),
  ),
  perLedger('pgweir_credit_reserve', 'What only critical work may touch.', ({ config }) => config.reserve),
  perLedger('pgweir_credit_capacity', 'The most that can be saved up.', ({ config }) => config.capacity),
  perLedger('pgweir_credit_spend_limit', 'What may be spent per second.', ({ spend }) => spend),
  perLedger('pgweir_credit_work_limit', 'Servers that may be at work for what is not critical.', ({ work }) => work),
  perLedger(
    'pgweir_credit_backlog',
    'What it would take to do all that waits, here and outside, without what is critical.',
    ({ backlog }) => backlog,
  ),
  perLedger('pgweir_credit_kappa', 'What one second of work spends, as learned.', ({ learned }) => learned.kappa),
  perLedger(
    'pgweir_credit_background',
    'What goes on beside the proxy, per second, as learned.',
    (view) => view.learned.background,
  ),
  perLedger(
    'pgweir_credit_exhaustion_seconds',
    'Time until the reserve is reached, by the worse of one and 15 minutes.',
    (view) => view.forecast.exhaustion,
  ),
  perLedger(
    'pgweir_credit_recovery_seconds',
    'Time until half of the capacity is back.',
    ({ forecast }) => forecast.recovery,
  ),
  perLedger(
    'pgweir_credit_fits',
    '1 when what waits and what goes on fit into the reserve; 0: scale up.',
    ({ verdict }) => Number(verdict.fits),
  ),
  perLedger('pgweir_credit_scale_up_seconds', 'When the database should be bigger at the latest.', ({ verdict }) =>
    verdict.fits ? Number.POSITIVE_INFINITY : verdict.scaleUpIn,
  ),
  perLedger('pgweir_credit_sample_age_seconds', 'Age of the newest sample that was believed.', ({ sampleAgeMs }) =>
    sampleAgeMs === null ? Number.NaN : sampleAgeMs / 1000,
  ),
  perLedger('pgweir_credit_missing', '1 while there is no sample to go by, and onMissing holds.', ({ missing }) =>
    Number(missing !== ''),
  ),
  {
    name: 'pgweir_credit_zone',
    help: '1 for the zone that the reserve is in.',
    type: 'gauge',
    labels: [...ledgerLabels, 'zone'],
    read: ({ credits }) =>
      [...credits].flatMap(([host, { ledgers }]) =>
        ledgers.flatMap(({ config, zone: now }) =>
          zones.map((zone) => [{ host, ledger: config.name, zone }, Number(zone === now)] as const),
        ),
      ),
  },
  {
    name: 'pgweir_credit_samples_total',
    help: 'Samples of the balance, by what became of them.',
    type: 'counter',
    labels: [...ledgerLabels, 'outcome'],
    read: ({ credits }) =>
      [...credits].flatMap(([host, { ledgers }]) =>
        ledgers.flatMap(({ config, received }) =>
          Object.entries(received).map(([outcome, count]) => [{ host, ledger: config.name, outcome }, count] as const),
        ),
      ),
  },
  {
    name: 'pgweir_source_reads_total',
    help: 'Times that a source of samples was asked.',
    type: 'counter',
    labels: ['source'],
    read: ({ sources }) => [...sources].map(([source, { reads }]) => [{ source }, reads] as const),
  },
  {
    name: 'pgweir_source_failures_total',
    help: 'Times that it failed, or was left alone because it had failed.',
    type: 'counter',
    labels: ['source'],
    read: ({ sources }) => [...sources].map(([source, { failures }]) => [{ source }, failures] as const),
  },
];

/** Columns of SHOW LEDGERS. */
export const LEDGER_COLUMNS = `host, ledger, mode, zone, balance n, lower n, reserve n, capacity n, spend_limit n, work_limit n,
  backlog n, kappa n, background n, exhaustion_s n, recovery_s n, fits, scale_up_s n, sample_age_s n, missing, rejected i`;

/** A row for each ledger of each host; null: not known, or never. */
export function ledgerRows(snapshot: Snapshot): (string | number | null)[][] {
  return views(snapshot).map(([host, view]) => {
    const { config, estimate, learned, forecast, verdict, received } = view;
    return [
      host,
      config.name,
      config.mode,
      view.zone,
      rounded(estimate?.balance),
      rounded(estimate?.lower),
      rounded(config.reserve),
      rounded(config.capacity),
      rounded(view.spend),
      rounded(view.work),
      rounded(view.backlog),
      rounded(learned.kappa),
      rounded(learned.background),
      rounded(forecast.exhaustion),
      rounded(forecast.recovery),
      verdict.fits ? 'yes' : 'no',
      verdict.fits ? null : rounded(verdict.scaleUpIn),
      view.sampleAgeMs === null ? null : rounded(view.sampleAgeMs / 1000),
      view.missing,
      received.quarantined!,
    ];
  });
}

/** To four digits; null for what is not known or infinite. */
function rounded(value: number | undefined): number | null {
  return value === undefined || !Number.isFinite(value) ? null : Number(value.toPrecision(4));
}
