/**
 * A Postgres that lives on burst credits, for benchmarks: a real one whose quota an independent controller moves as a T-class
 * instance would, and a server that publishes its balance as metrics are published: late, averaged or not, rounded, and with
 * faults. Used by bench/incident-b.
 *
 *     used ──quota──▶ balance += (earn − used) · dt ──▶ > 0: all vCPUs;  0: what is earned ──quota──▶ Postgres
 *                        └──lag, period──▶ HTTP: JSON, Prometheus (query API and text), CloudWatch (GetMetricData) ──▶ pgweir
 *
 * Units: a vCPU of the instance is VCPU of a processor of this machine; a credit is a minute of one. Times are those of life, which
 * runs `pace` times faster here.
 */

import { once } from 'node:events';
import http from 'node:http';
import type { AddressInfo } from 'node:net';
import { text } from 'node:stream/consumers';
import type { EmbeddedPostgres } from '../src/embedded.ts';
import { type Quota, quotaOf } from './quota.ts';

/** How much of a processor of this machine is a vCPU of the instance: so small that several instances fit on it. */
export const VCPU = 0.15;
export const VCPUS = 2;
/** vCPU that is earned: a fifth of each. */
export const EARN = 0.4;
const TICK_MS = 100;
/** Below this many minutes of all vCPUs the taper begins. */
const TAPER_MINUTES = 15;

export interface MeterOptions {
  pace: number;
  /** Credits. */
  capacity: number;
  start: number;
  /** Of the published metrics, in s of life. */
  period: number;
  lag: number;
  /** The balance is told as the average of the period, not as of its end; in steps of so many credits. */
  isAveraged?: boolean;
  quantum?: number;
  /** At zero: all at once, or falling from a quarter of an hour before on. */
  fall?: 'cliff' | 'taper';
}

/** 'dies': errors; 'stops': no new points; 'hangs': no answer; 'zero': an exporter without data; 'freezes': the same again and again. */
export type Fault = 'none' | 'dies' | 'stops' | 'hangs' | 'zero' | 'freezes';

export interface Point {
  /** s of life since the start. */
  at: number;
  balance: number;
  /** vCPU. */
  used: number;
}

/** A published sample: what it says, and when that was (s of life; wall-clock ms). */
interface Published {
  at: number;
  wall: number;
  balance: number;
  /** Percent of all vCPUs. */
  load: number;
}

export class Meter {
  readonly #options: Required<MeterOptions>;
  readonly #quota: Quota;
  readonly #server: http.Server;
  #timer: NodeJS.Timeout | null = null;
  #began = 0;
  balance: number;
  /** Credits that were spent. */
  spent = 0;
  #fault: Fault = 'none';
  #stoppedAt = Number.POSITIVE_INFINITY;
  /** Told as /backlog.json. */
  jobs = 0;
  /** Every 100 ms. */
  readonly log: Point[] = [];
  #usedNs = 0;
  #share = -1;

  constructor(postgres: EmbeddedPostgres, options: MeterOptions) {
    this.#options = { isAveraged: false, quantum: 0.01, fall: 'cliff', ...options };
    this.balance = options.start;
    this.#quota = quotaOf(postgres);
    this.#server = http.createServer((request, response) => void this.#answer(request, response));
  }

  /** Publishes, but nothing is spent yet. */
  async listen(): Promise<void> {
    this.#server.listen(0, '127.0.0.1');
    await once(this.#server, 'listening');
    this.#follow();
  }

  /** From here on it earns and spends. */
  start(): void {
    this.#began = performance.now();
    this.#usedNs = this.#quota.usedNs;
    let before = this.#began;
    this.#timer = setInterval(() => {
      const now = performance.now();
      this.#step((now - before) / 1000);
      before = now;
    }, TICK_MS);
  }

  get how(): string {
    return this.#quota.how;
  }

  /** s of life since the start. */
  get now(): number {
    return ((performance.now() - this.#began) / 1000) * this.#options.pace;
  }

  /** Processor time of this machine in ms. */
  get usedMs(): number {
    return this.#quota.usedNs / 1e6;
  }

  get url(): string {
    return `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  set fault(fault: Fault) {
    if (fault !== 'none' && this.#fault === 'none') this.#stoppedAt = this.now;
    this.#fault = fault;
  }

  /** Gives Postgres what it may use at this balance. */
  #follow(): void {
    const { fall, capacity } = this.#options;
    const left = this.balance / (TAPER_MINUTES * (VCPUS - EARN));
    let share = VCPUS;
    if (fall === 'taper') share = EARN + (VCPUS - EARN) * Math.min(1, left);
    else if (this.balance === 0) share = EARN;
    // A credit that is earned is spent at once; only with a little saved up is it fast again.
    else if (this.#share === EARN && this.balance < 0.002 * capacity) share = EARN;
    if (share !== this.#share) this.#quota.set(share * VCPU);
    this.#share = share;
  }

  #step(seconds: number): void {
    const { pace, capacity } = this.#options;
    const { usedNs } = this.#quota;
    const vcpuSeconds = (usedNs - this.#usedNs) / 1e9 / VCPU;
    this.#usedNs = usedNs;
    this.spent += (vcpuSeconds * pace) / 60;
    this.balance = Math.min(capacity, Math.max(0, this.balance + ((EARN * seconds - vcpuSeconds) * pace) / 60));
    this.#follow();
    this.log.push({ at: this.now, balance: this.balance, used: vcpuSeconds / seconds });
  }

  /** The newest sample that is published: of a period that ended `lag` ago or before. */
  get published(): Published | null {
    return this.#publishedBefore(this.#fault === 'stops' || this.#fault === 'freezes' ? this.#stoppedAt : this.now);
  }

  #publishedBefore(now: number): Published | null {
    const { period, lag, isAveraged, quantum, pace } = this.#options;
    const at = Math.floor((now - lag) / period) * period;
    const span = this.log.filter((each) => each.at > at - period && each.at <= at);
    if (at <= 0 || span.length === 0) return null;
    const mean = (of: (point: Point) => number) => span.reduce((sum, point) => sum + of(point), 0) / span.length;
    const balance = isAveraged ? mean((point) => point.balance) : span.at(-1)!.balance;
    return {
      at,
      wall: performance.timeOrigin + this.#began + (1000 * at) / pace,
      balance: this.#fault === 'zero' ? 0 : quantum * Math.round(balance / quantum),
      load: (100 * mean(({ used }) => used)) / VCPUS,
    };
  }

  async #answer(request: http.IncomingMessage, response: http.ServerResponse): Promise<void> {
    if (this.#fault === 'dies') return void response.writeHead(500).end('down');
    if (this.#fault === 'hangs') return;
    const { pathname, searchParams } = new URL(request.url!, 'http://meter');
    const sample = this.published;
    // What freezes is told as new.
    if (sample !== null && this.#fault === 'freezes') sample.wall = Date.now();
    if (request.method === 'POST') return this.#answerCloudWatch(await text(request), response);
    if (pathname === '/metrics') return void response.end(sample === null ? '' : promText(sample));
    response.setHeader('content-type', 'application/json');
    if (pathname === '/backlog.json') return void response.end(JSON.stringify({ jobs: this.jobs }));
    if (pathname === '/api/v1/query')
      return void response.end(JSON.stringify(promResult(searchParams.get('query') ?? '', sample)));
    response.writeHead(sample === null ? 404 : 200).end(JSON.stringify(sample ?? {}));
  }

  /** GetMetricData: all points that are published of the time that is asked for, at the starts of their periods. */
  #answerCloudWatch(body: string, response: http.ServerResponse): void {
    const { period, lag, pace } = this.#options;
    const { MetricDataQueries, StartTime, EndTime } = JSON.parse(body) as {
      MetricDataQueries: { Id: string; MetricStat: { Metric: { MetricName: string } } }[];
      StartTime: number;
      EndTime: number;
    };
    const last = this.published?.at ?? 0;
    const points: Published[] = [];
    for (let at = period; at <= last; at += period) {
      const point = this.#publishedBefore(at + lag)!;
      if (point !== null && point.wall >= 1000 * StartTime && point.wall < 1000 * EndTime) points.push(point);
    }
    const periodS = period / pace;
    const MetricDataResults = MetricDataQueries.map(({ Id, MetricStat }) => ({
      Id,
      StatusCode: 'Complete',
      Timestamps: points.map(({ wall }) => wall / 1000 - periodS),
      Values: points.map((each) => (MetricStat.Metric.MetricName === 'CPUUtilization' ? each.load : each.balance)),
    }));
    response.setHeader('content-type', 'application/x-amz-json-1.0');
    response.end(JSON.stringify({ MetricDataResults }));
  }

  /** It is over: nothing limits Postgres any more, so that it can end. */
  stop(): void {
    if (this.#timer !== null) clearInterval(this.#timer);
    this.#quota.set(Number.POSITIVE_INFINITY);
  }

  /** Postgres must have ended; its last processes may still be about to. */
  async close(): Promise<void> {
    this.stop();
    this.#server.closeAllConnections();
    this.#server.close();
    await this.#quota.close();
  }
}

const BALANCE = 'aws_rds_cpucredit_balance_average';
const LOAD = 'aws_rds_cpuutilization_average';

/** As an exporter with timestamps has it. */
function promText({ wall, balance, load }: Published): string {
  const line = (name: string, value: number) =>
    `# TYPE ${name} gauge\n${name}{dbinstance_identifier="db-1"} ${value} ${Math.round(wall)}\n`;
  return line(BALANCE, balance) + line(LOAD, load);
}

/** As /api/v1/query answers for a metric, or timestamp() of it. */
function promResult(query: string, sample: Published | null): object {
  const value =
    sample === null
      ? null
      : query.startsWith('timestamp(')
        ? sample.wall / 1000
        : query.includes(LOAD)
          ? sample.load
          : sample.balance;
  const result = value === null ? [] : [{ metric: {}, value: [Date.now() / 1000, String(value)] }];
  return { status: 'success', data: { resultType: 'vector', result } };
}
