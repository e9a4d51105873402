/**
 * What a Postgres may use of the processor, and what it has used: for benchmarks that need a machine smaller than this one. Used by
 * bench/overload and bench/metered.
 *
 * Control groups do it where there are rights for them (v2, or v1: bench/cgroup); elsewhere the stand-in (bench/standin), which is
 * coarse: results made with it say so.
 */
import type { EmbeddedPostgres } from '../src/embedded.ts';
import { ControlGroupV1, ControlGroupV2 } from './cgroup.ts';
import { StandIn } from './standin.ts';

export interface Quota {
  /** For the results. */
  readonly how: string;
  /** Processor time that it has used, in ns. */
  readonly usedNs: number;
  /** What it may use of a processor; infinite: all. */
  set(processors: number): void;
  /** Postgres must have ended; its last processes may still be about to. */
  close(): Promise<void>;
}

/** What the postmaster starts from here on is under it as well. */
export function quotaOf(postgres: EmbeddedPostgres): Quota {
  if (ControlGroupV2.isPossible()) return new ControlGroupV2(postgres);
  if (ControlGroupV1.isPossible()) return new ControlGroupV1(postgres);
  console.error(
    '*** No rights for control groups (as root: v2, or v1 with cpu and cpuacct): a TOKEN-METERED STAND-IN is used ***',
  );
  return new StandIn(postgres);
}
