/**
 * CloudWatch, by the AWS SDK (loaded when it is first asked; credentials by the SDK's own chain). One call for all metrics of a
 * region: GetMetricData takes 500 queries and answers in pages ("GetMetricData", CloudWatch API reference).
 *
 * Points are of a period and are shown at its beginning; they come minutes late, and the last may yet change: so what is
 * read is the newest complete one, and its time is the end of its period.
 */
import type { CloudWatchClient, MetricDataQuery } from '@aws-sdk/client-cloudwatch';
import type { Reading, Source } from './source.ts';

export interface CloudWatchMetric {
  namespace: string;
  name: string;
  dimensions: Readonly<Record<string, string>>;
  /** Ms. */
  period: number;
}

/** How far back is asked for, in periods: values come up to ten minutes late. */
const PERIODS = 6;
const QUERIES_MAX = 500;
/** Metrics that are asked for within this time share a call, in ms. */
const SHARE_MS = 2_000;

/** All metrics of one region. */
export class CloudWatch {
  readonly #region: string;
  readonly #now: () => number;
  readonly #metrics: CloudWatchMetric[] = [];
  #client: Promise<CloudWatchClient> | null = null;
  #last: { at: number; answer: Promise<Map<CloudWatchMetric, Reading[] | Error>> } | null = null;

  constructor(region: string, now: () => number) {
    this.#region = region;
    this.#now = now;
  }

  source(metric: CloudWatchMetric): Source {
    this.#metrics.push(metric);
    return {
      read: async (signal) => {
        const found = (await this.#ask(signal)).get(metric) ?? [];
        if (found instanceof Error) throw found;
        return found;
      },
    };
  }

  #ask(signal: AbortSignal): Promise<Map<CloudWatchMetric, Reading[] | Error>> {
    const now = this.#now();
    if (this.#last === null || now - this.#last.at > SHARE_MS)
      this.#last = { at: now, answer: this.#fetch(signal, now) };
    return this.#last.answer;
  }

  async #fetch(signal: AbortSignal, now: number): Promise<Map<CloudWatchMetric, Reading[] | Error>> {
    const { GetMetricDataCommand, CloudWatchClient: Client } = await import('@aws-sdk/client-cloudwatch');
    this.#client ??= Promise.resolve(
      // The SDK backs off by itself when it is told to (adaptive: its own token bucket).
      new Client({ region: this.#region, maxAttempts: 4, retryMode: 'adaptive' }),
    );
    const client = await this.#client;
    const found = new Map<CloudWatchMetric, Reading[] | Error>();
    for (let first = 0; first < this.#metrics.length; first += QUERIES_MAX) {
      const metrics = this.#metrics.slice(first, first + QUERIES_MAX);
      const longest = Math.max(...metrics.map(({ period }) => period));
      let NextToken: string | undefined;
      do {
        const answer = await client.send(
          new GetMetricDataCommand({
            MetricDataQueries: metrics.map(queryOf),
            StartTime: new Date(Math.floor((now - PERIODS * longest) / longest) * longest),
            EndTime: new Date(Math.ceil(now / longest) * longest),
            ScanBy: 'TimestampAscending',
            ...(NextToken === undefined ? {} : { NextToken }),
          }),
          { abortSignal: signal },
        );
        for (const { Id, StatusCode, Timestamps = [], Values = [] } of answer.MetricDataResults ?? []) {
          const metric = metrics[Number(Id?.slice(1))];
          if (metric === undefined) continue;
          if (StatusCode === 'InternalError' || StatusCode === 'Forbidden') {
            found.set(metric, new Error(`CloudWatch says ${StatusCode} for ${metric.name}`));
            continue;
          }
          // PartialData: what there is is right, and the rest is on the next page.
          const before = found.get(metric) ?? [];
          if (before instanceof Error) continue;
          const readings = before;
          Timestamps.forEach((time, index) => {
            const observedAt = time.getTime() + metric.period;
            const value = Values[index];
            if (value !== undefined && observedAt <= now) readings.push({ value, observedAt });
          });
          found.set(metric, readings);
        }
        NextToken = answer.NextToken;
      } while (NextToken !== undefined);
    }
    for (const readings of found.values())
      if (Array.isArray(readings)) readings.sort((a, b) => a.observedAt - b.observedAt);
    return found;
  }
}

function queryOf({ namespace, name, dimensions, period }: CloudWatchMetric, index: number): MetricDataQuery {
  return {
    Id: `m${index}`,
    MetricStat: {
      Metric: {
        Namespace: namespace,
        MetricName: name,
        Dimensions: Object.entries(dimensions).map(([Name, Value]) => ({ Name, Value })),
      },
      Period: period / 1000,
      Stat: 'Average',
    },
  };
}
