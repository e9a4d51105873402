/** A control group (v1: cpu, cpuacct; as root) that a Postgres is put into, to limit its processor and to count what it uses. */
import { existsSync, mkdirSync, readFileSync, rmdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import type { EmbeddedPostgres } from '../src/embedded.ts';

const PERIOD_US = 20_000;
const ROOT = '/sys/fs/cgroup';

export class ControlGroup {
  readonly #cpu = join(ROOT, 'cpu', 'pgweir-bench');
  readonly #account = join(ROOT, 'cpuacct', 'pgweir-bench');

  /** What the postmaster starts from here on is in its group; what it has started is moved. */
  constructor({ pid }: EmbeddedPostgres) {
    if (!existsSync(join(ROOT, 'cpu'))) throw new Error('this needs control groups v1 (cpu, cpuacct), as root');
    for (const group of [this.#cpu, this.#account]) {
      if (!existsSync(group)) mkdirSync(group);
      for (const each of [pid, ...childrenOf(pid)])
        if (existsSync(`/proc/${each}`)) writeFileSync(join(group, 'cgroup.procs'), String(each));
    }
    writeFileSync(join(this.#cpu, 'cpu.cfs_period_us'), String(PERIOD_US));
  }

  /** What it may use of a processor. */
  setQuota(processors: number): void {
    writeFileSync(join(this.#cpu, 'cpu.cfs_quota_us'), String(Math.round(PERIOD_US * processors)));
  }

  /** Processor time that it has used, in ns. */
  get usedNs(): number {
    return Number(readFileSync(join(this.#account, 'cpuacct.usage'), 'utf8'));
  }

  /** Postgres must have ended; its last processes may still be about to. */
  async close(): Promise<void> {
    for (const group of [this.#cpu, this.#account]) {
      for (let tries = 0; existsSync(group); tries++) {
        try {
          rmdirSync(group);
        } catch (thrown) {
          if (tries > 100) throw thrown; // Somebody is still in it.
          await sleep(100);
        }
      }
    }
  }
}

function childrenOf(pid: number): number[] {
  return readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8').split(' ').filter(Boolean).map(Number);
}
