/**
 * The token-metered stand-in for a control group, where there are no rights for one: the processes of Postgres are stopped and
 * continued (SIGSTOP, SIGCONT) every few milliseconds, so that on average they use no more than their quota. Chosen by bench/quota.
 *
 *     tokens += quota · time − used;   ≤ 0: all are stopped;   > 0: all go on
 *
 * It is coarse: what is used is read from the scheduler's own account of each process, and the last of what a process has used
 * before it ends is lost. Results made with it say so.
 */
import { existsSync, readFileSync } from 'node:fs';
import type { EmbeddedPostgres } from '../src/embedded.ts';
import { childrenOf } from './cgroup.ts';
import type { Quota } from './quota.ts';

const TICK_MS = 5;
/** What is not used is kept for so long. */
const BURST_MS = 20;

export class StandIn implements Quota {
  readonly how = 'token-metered stand-in (SIGSTOP)';
  readonly #pid: number;
  readonly #timer: NodeJS.Timeout;
  readonly #usedBy = new Map<number, number>();
  #usedNs = 0;
  #quota = Number.POSITIVE_INFINITY;
  #tokensNs = 0;
  #at = performance.now();
  #isStopped = false;

  constructor({ pid }: EmbeddedPostgres) {
    this.#pid = pid;
    this.#timer = setInterval(() => this.#tick(), TICK_MS);
  }

  set(processors: number): void {
    this.#quota = processors;
  }

  get usedNs(): number {
    return this.#usedNs;
  }

  #tick(): void {
    if (!existsSync(`/proc/${this.#pid}`)) return;
    const children = childrenOf(this.#pid);
    const before = this.#usedNs;
    for (const each of children) {
      const used = usedBy(each);
      if (used === null) continue;
      this.#usedNs += used - (this.#usedBy.get(each) ?? 0);
      this.#usedBy.set(each, used);
    }
    const now = performance.now();
    const earned = 1e6 * this.#quota * (now - this.#at);
    this.#at = now;
    this.#tokensNs = Math.min(1e6 * this.#quota * BURST_MS, this.#tokensNs + earned - (this.#usedNs - before));
    const isStopped = this.#tokensNs <= 0;
    // Who has just been started is stopped with the others.
    if (isStopped || this.#isStopped) for (const each of children) signal(each, isStopped ? 'SIGSTOP' : 'SIGCONT');
    this.#isStopped = isStopped;
  }

  async close(): Promise<void> {
    clearInterval(this.#timer);
    if (existsSync(`/proc/${this.#pid}`)) for (const each of childrenOf(this.#pid)) signal(each, 'SIGCONT');
  }
}

/** Processor time in ns; null: it is gone. */
function usedBy(pid: number): number | null {
  try {
    return Number(readFileSync(`/proc/${pid}/schedstat`, 'utf8').split(' ')[0]);
  } catch {
    return null;
  }
}

function signal(pid: number, name: NodeJS.Signals): void {
  try {
    process.kill(pid, name);
  } catch {
    // It has ended.
  }
}
