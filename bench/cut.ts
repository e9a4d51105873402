/**
 * A network that can be cut: a namespace of its own at the end of a virtual cable. Used by bench/failover; needs root and `ip`.
 *
 * With its far end down packets are lost without a word: no RST, as when a switch dies.
 */
import { spawnSync } from 'node:child_process';

export class Cut {
  readonly namespace: string;
  /** Of the far end. */
  readonly address: string;
  readonly #device: string;

  private constructor(name: string) {
    this.namespace = name;
    this.#device = `${name}n`;
    // RFC 6598: addresses that nobody has.
    this.address = '100.127.255.2';
  }

  /** A text: why that cannot be done. */
  static make(): Cut | string {
    const cable = new Cut(`pgw${process.pid}`);
    const { namespace, address } = cable;
    const near = `${namespace}h`;
    const steps = [
      ['netns', 'add', namespace],
      ['link', 'add', near, 'type', 'veth', 'peer', 'name', cable.#device, 'netns', namespace],
      ['addr', 'add', '100.127.255.1/30', 'dev', near],
      ['link', 'set', near, 'up'],
      ['-n', namespace, 'addr', 'add', `${address}/30`, 'dev', cable.#device],
      ['-n', namespace, 'link', 'set', 'lo', 'up'],
      ['-n', namespace, 'link', 'set', cable.#device, 'up'],
    ];
    for (const step of steps) {
      const problem = ip(step);
      if (problem === '') continue;
      cable.remove();
      return problem;
    }
    return cable;
  }

  cut(): void {
    ip(['-n', this.namespace, 'link', 'set', this.#device, 'down']);
  }

  mend(): void {
    ip(['-n', this.namespace, 'link', 'set', this.#device, 'up']);
  }

  remove(): void {
    ip(['netns', 'del', this.namespace]);
  }
}

/** Gives what went wrong, or ''. */
function ip(args: string[]): string {
  const { status, stderr, error } = spawnSync('ip', args, { encoding: 'utf8' });
  return status === 0 ? '' : (error?.message ?? `ip ${args.join(' ')}: ${stderr.trim()}`);
}
