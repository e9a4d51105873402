/**
 * A Postgres that lives on burst credits, for benchmarks: a real one in a control group whose quota an independent controller
 * moves as a T-class instance would, and a server that publishes its balance as metrics are published: late, averaged over a
 * period, rounded, and with faults. Used by bench/incident-b.
 *
 *     used ──cpuacct──▶ balance += (earn − used) · dt ──▶ > 0: full quota; 0: the baseline's ──cpu.cfs_quota_us──▶ Postgres
 *                          └──lag, period──▶ HTTP (JSON, Prometheus' API) ──▶ pgweir
 *
 * Units: a vCPU of the instance is VCPU of a processor of this machine; a credit is a minute of one; time is compressed by making
 * the bucket smaller. Needs control groups v1 (cpu, cpuacct) and root.
 */

import { once } from 'node:events';
import http from 'node:http';
import type { AddressInfo } from 'node:net';
import type { EmbeddedPostgres } from '../src/embedded.ts';
import { ControlGroup } from './cgroup.ts';

/** How much of a processor of this machine is a vCPU of the instance. */
export const VCPU = 0.4;
export const VCPUS = 2;
/** vCPU that is earned: a fifth of each. */
export const EARN = 0.4;
const TICK_MS = 100;

export interface MeterOptions {
  /** Credits. */
  capacity: number;
  start: number;
  /** Of the published metric, in s. */
  period: number;
  lag: number;
}

/** 'dies': errors; 'zero': an exporter without data; 'freezes': the same again and again. */
export type Fault = 'none' | 'dies' | 'zero' | 'freezes';

export class Meter {
  readonly #options: MeterOptions;
  readonly #group: ControlGroup;
  readonly #server: http.Server;
  readonly #timer: NodeJS.Timeout;
  readonly #began = performance.now();
  balance: number;
  fault: Fault = 'none';
  /** Every 100 ms: seconds since the start, and the true balance. */
  readonly log: { at: number; balance: number; used: number }[] = [];
  #usedNs = 0;
  #isFull: boolean | null = null;

  constructor(postgres: EmbeddedPostgres, options: MeterOptions) {
    this.#options = options;
    this.balance = options.start;
    this.#group = new ControlGroup(postgres);
    this.#usedNs = this.#group.usedNs;
    let before = performance.now();
    this.#timer = setInterval(() => {
      const now = performance.now();
      this.#step((now - before) / 1000);
      before = now;
    }, TICK_MS);
    this.#setQuota(true);
    this.#server = http.createServer((request, response) =>
      this.#answer(new URL(request.url!, 'http://meter'), response),
    );
  }

  /** Publishes from here on. */
  async publish(): Promise<void> {
    this.#server.listen(0, '127.0.0.1');
    await once(this.#server, 'listening');
  }

  /** performance.now() of its start, in s. */
  get beganAt(): number {
    return this.#began / 1000;
  }

  get url(): string {
    return `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  #setQuota(isFull: boolean): void {
    if (this.#isFull === isFull) return;
    this.#isFull = isFull;
    this.#group.setQuota((isFull ? VCPUS : EARN) * VCPU);
  }

  /** Earns and spends; at zero it falls off the cliff. */
  #step(seconds: number): void {
    const { usedNs } = this.#group;
    const vcpuSeconds = (usedNs - this.#usedNs) / 1e9 / VCPU;
    this.#usedNs = usedNs;
    this.balance = Math.min(this.#options.capacity, Math.max(0, this.balance + (EARN * seconds - vcpuSeconds) / 60));
    // A credit that is earned is spent at once; only with a little saved up is it fast again.
    if (this.balance === 0) this.#setQuota(false);
    else if (this.balance > 0.002 * this.#options.capacity) this.#setQuota(true);
    this.log.push({ at: (performance.now() - this.#began) / 1000, balance: this.balance, used: vcpuSeconds / seconds });
  }

  /** The newest sample that is published: of the end of a period, `lag` ago. */
  get published(): { value: number; at: number; load: number } | null {
    const { period, lag } = this.#options;
    const now = (performance.now() - this.#began) / 1000;
    const due = Math.floor((now - lag) / period) * period;
    if (due <= 0) return null;
    const span = this.log.filter(({ at }) => at > due - period && at <= due);
    if (span.length === 0) return null;
    const load = span.reduce((sum, { used }) => sum + used, 0) / span.length / VCPUS;
    return { value: Math.round(100 * span.at(-1)!.balance) / 100, at: due, load: 100 * load };
  }

  #frozen: ReturnType<Meter['sampleByTheClock']> = null;

  sampleByTheClock() {
    const sample = this.published;
    return sample === null ? null : { ...sample, wall: performance.timeOrigin + this.#began + 1000 * sample.at };
  }

  #answer({ pathname, searchParams }: URL, response: http.ServerResponse): void {
    if (this.fault === 'dies') return void response.writeHead(500).end('down');
    const fresh = this.sampleByTheClock();
    if (this.fault !== 'freezes') this.#frozen = fresh;
    const sample = this.fault === 'freezes' ? this.#frozen : fresh;
    const value = this.fault === 'zero' ? 0 : (sample?.value ?? null);
    response.setHeader('content-type', 'application/json');
    if (pathname !== '/api/v1/query') {
      if (sample === null) return void response.writeHead(404).end('{}');
      return void response.end(JSON.stringify({ balance: value, load: sample.load, at: sample.wall }));
    }
    const isTime = searchParams.get('query')?.startsWith('timestamp(');
    const result =
      sample === null ? [] : [{ metric: {}, value: [Date.now() / 1000, String(isTime ? sample.wall / 1000 : value)] }];
    response.end(JSON.stringify({ status: 'success', data: { resultType: 'vector', result } }));
  }

  /** Postgres must have ended; its last processes may still be about to. */
  async close(): Promise<void> {
    clearInterval(this.#timer);
    this.#server.closeAllConnections();
    this.#server.close();
    await this.#group.close();
  }
}
