/** Control groups that a Postgres is put into, to limit its processor and to count what it uses. Chosen by bench/quota. */
import { accessSync, constants, existsSync, mkdirSync, readFileSync, rmdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import type { EmbeddedPostgres } from '../src/embedded.ts';
import type { Quota } from './quota.ts';

const PERIOD_US = 20_000;
/** The system takes no smaller quota. */
const QUOTA_MIN_US = 1_000;

/** Quota and period, in µs, for this part of a processor. */
function share(processors: number): { quota: number; period: number } {
  const period = Math.max(PERIOD_US, Math.ceil(QUOTA_MIN_US / processors));
  return { quota: Math.round(period * processors), period };
}
const ROOT = '/sys/fs/cgroup';

/** Version 1: cpu and cpuacct are hierarchies of their own. */
export class ControlGroupV1 implements Quota {
  readonly how = 'control group (v1)';
  readonly #cpu: string;
  readonly #account: string;

  constructor({ pid }: EmbeddedPostgres) {
    this.#cpu = join(ROOT, 'cpu', `pgweir-bench-${pid}`);
    this.#account = join(ROOT, 'cpuacct', `pgweir-bench-${pid}`);
    for (const group of [this.#cpu, this.#account]) fill(group, pid);
  }

  static isPossible(): boolean {
    return ['cpu', 'cpuacct'].every((each) => isWritable(join(ROOT, each)));
  }

  set(processors: number): void {
    const write = (name: string, us: number) => writeFileSync(join(this.#cpu, `cpu.cfs_${name}_us`), String(us));
    write('quota', -1); // Neither may be wrong for the other on the way.
    if (!Number.isFinite(processors)) return;
    const { quota, period } = share(processors);
    write('period', period);
    write('quota', quota);
  }

  get usedNs(): number {
    return Number(readFileSync(join(this.#account, 'cpuacct.usage'), 'utf8'));
  }

  async close(): Promise<void> {
    for (const group of [this.#cpu, this.#account]) await remove(group);
  }
}

/** Version 2: one hierarchy; the cpu controller must not be bound to version 1. */
export class ControlGroupV2 implements Quota {
  readonly how = 'control group (v2)';
  readonly #group: string;

  constructor({ pid }: EmbeddedPostgres, root = ROOT) {
    writeFileSync(join(root, 'cgroup.subtree_control'), '+cpu');
    this.#group = join(root, `pgweir-bench-${pid}`);
    fill(this.#group, pid);
  }

  static isPossible(): boolean {
    const controllers = join(ROOT, 'cgroup.controllers');
    return (
      existsSync(controllers) && readFileSync(controllers, 'utf8').split(/\s+/).includes('cpu') && isWritable(ROOT)
    );
  }

  set(processors: number): void {
    const { quota, period } = Number.isFinite(processors) ? share(processors) : { quota: 'max', period: PERIOD_US };
    writeFileSync(join(this.#group, 'cpu.max'), `${quota} ${period}`);
  }

  get usedNs(): number {
    const [, us] = /^usage_usec (\d+)$/m.exec(readFileSync(join(this.#group, 'cpu.stat'), 'utf8'))!;
    return 1000 * Number(us);
  }

  close(): Promise<void> {
    return remove(this.#group);
  }
}

function isWritable(folder: string): boolean {
  try {
    accessSync(folder, constants.W_OK);
    return true;
  } catch {
    return false;
  }
}

/** What `pid` has started is moved, and what it starts from here on is in the group. */
function fill(group: string, pid: number): void {
  if (!existsSync(group)) mkdirSync(group);
  for (const each of [pid, ...childrenOf(pid)])
    if (existsSync(`/proc/${each}`)) writeFileSync(join(group, 'cgroup.procs'), String(each));
}

async function remove(group: string): Promise<void> {
  for (let tries = 0; existsSync(group); tries++) {
    try {
      rmdirSync(group);
    } catch (thrown) {
      if (tries > 100) throw thrown; // Somebody is still in it.
      await sleep(100);
    }
  }
}

export function childrenOf(pid: number): number[] {
  return readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8').split(' ').filter(Boolean).map(Number);
}
