/** What a run has found: ratios, a Markdown table, a chart, and the comparison with the baseline. Used by bench/run. */
import type { Sample, Scenario } from './scenarios.ts';
import { median, spread } from './stats.ts';

export interface Row {
  contender: string;
  /** Medians; `value` in the unit of the scenario. */
  value: number;
  spread: number;
  cpuUs: number | null;
  p50: number | null;
  p99: number | null;
  servers: number | null;
  rssKib: number | null;
  /** Median over the rounds of this contender's value by the reference's in the same round, and its spread. */
  ratio: number;
  ratioSpread: number;
  /** With one client: added p50 latency over direct, by that of the reference; null where it cannot be told. */
  addedRatio: number | null;
}

export interface Result {
  scenario: string;
  unit: Scenario['unit'];
  /** Whom ratios are taken to: PgBouncer where it takes part, else Postgres itself. */
  reference: string;
  rows: Row[];
}

/** By scenario and contender. */
export type Baseline = Record<string, Record<string, number>>;

const TOLERANCE = 0.15;

export function summarize(scenario: Scenario, samples: Map<string, Sample[]>): Result {
  const reference = ['pgbouncer', 'direct', ...samples.keys()].find((name) => samples.has(name))!;
  const middle = (each: Sample[], key: keyof Sample) => {
    const known = each.map((one) => one[key]).filter((value) => value !== null);
    return known.length === 0 ? null : median(known);
  };
  const added = (name: string) => {
    const [own, bare] = [middle(samples.get(name)!, 'p50'), middle(samples.get('direct') ?? [], 'p50')];
    return own === null || bare === null ? null : own - bare;
  };
  // With more clients than processors a latency is mostly waiting, and differences mean nothing.
  const base = reference === 'pgbouncer' && scenario.name.endsWith(', 1 client') ? added(reference) : null;
  const rows = [...samples].map(([contender, each]): Row => {
    const values = each.map(({ value }) => value);
    const ratios = each.map(({ value }, round) => value / samples.get(reference)![round]!.value);
    const own = added(contender);
    return {
      contender,
      value: median(values),
      spread: spread(values),
      cpuUs: middle(each, 'cpuUs'),
      p50: middle(each, 'p50'),
      p99: middle(each, 'p99'),
      servers: middle(each, 'servers'),
      rssKib: middle(each, 'rssKib'),
      ratio: median(ratios),
      ratioSpread: spread(ratios),
      addedRatio: contender === 'direct' || own === null || base === null ? null : own / base,
    };
  });
  return { scenario: scenario.name, unit: scenario.unit, reference, rows };
}

/** A Markdown table per scenario. */
export function table(results: readonly Result[]): string {
  return results
    .map(({ scenario, unit, reference, rows }) => {
      const lines = rows.map((row) =>
        [
          row.contender,
          `${number(row.value)} ±${Math.round(100 * row.spread)} %`,
          `${row.ratio.toFixed(2)} ±${Math.round(100 * row.ratioSpread)} %`,
          number(row.cpuUs),
          number(row.p50),
          number(row.p99),
          number(row.addedRatio),
          number(row.servers),
          row.rssKib === null ? '' : number(row.rssKib / 1024),
        ].join(' | '),
      );
      return `### ${scenario}

| contender | ${unit} | ratio to ${reference} | CPU µs/tx | p50 ms | p99 ms | added p50 ratio | servers | RSS MiB |
|---|---|---|---|---|---|---|---|---|
${lines.map((line) => `| ${line} |`).join('\n')}
`;
    })
    .join('\n');
}

function number(value: number | null): string {
  if (value === null || Number.isNaN(value)) return '';
  return value >= 100 ? String(Math.round(value)) : value.toPrecision(3);
}

const WIDTH = 640;
const BAR = 26;
const LABEL = 130;

/** Bars, as an SVG picture. */
export function chart({ scenario, unit, rows }: Result): string {
  const most = Math.max(...rows.map(({ value }) => value));
  const bars = rows.map(({ contender, value }, index) => {
    const y = 34 + index * (BAR + 8);
    const width = ((WIDTH - LABEL - 110) * value) / most;
    return `<text x="${LABEL - 8}" y="${y + 18}" text-anchor="end">${contender}</text>
<rect x="${LABEL}" y="${y}" width="${width.toFixed(1)}" height="${BAR}" fill="${contender.startsWith('pgweir') ? '#2a7f9e' : '#a9b4ba'}"/>
<text x="${(LABEL + width + 6).toFixed(1)}" y="${y + 18}">${number(value)} ${unit}</text>`;
  });
  const height = 44 + rows.length * (BAR + 8);
  return `<svg xmlns="http://www.w3.org/2000/svg" width="${WIDTH}" height="${height}" font-family="sans-serif" font-size="13">
<title>${scenario}: ${unit} by contender</title>
<text x="8" y="20" font-size="15">${scenario}</text>
${bars.join('\n')}
</svg>
`;
}

/** Ratios that have fallen below the baseline by more than 15 % and more than twice their spread. */
export function check(results: readonly Result[], baseline: Baseline): string[] {
  const problems: string[] = [];
  for (const { scenario, unit, reference, rows } of results) {
    for (const { contender, ratio, ratioSpread } of rows) {
      const wanted = baseline[scenario]?.[contender];
      if (wanted === undefined) continue;
      const room = Math.max(TOLERANCE, 2 * ratioSpread);
      const isWorse = unit === 'ms' || unit === 'KiB' ? ratio > wanted * (1 + room) : ratio < wanted * (1 - room);
      if (isWorse)
        problems.push(
          `${scenario}: ${contender} is at ${ratio.toFixed(2)} of ${reference}, the baseline is ${wanted.toFixed(2)} (room ${Math.round(100 * room)} %)`,
        );
    }
  }
  return problems;
}
