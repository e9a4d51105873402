/**
 * What in a configuration is allowed and probably not meant. Called by cli (check) and app (at a start and a reload).
 *
 * The one idea: who believes to be protected and is not finds out on the worst day; so it is said on the first.
 */
import type { Config } from './schema.ts';

/** Sentences; none: nothing is conspicuous. `users`: the names of auth.users, null: nobody needs to be there. */
export function adviceFor(config: Config, users: Iterable<string> | null): string[] {
  const advice: string[] = [];
  const { admission, limit, classes, databases, auth, state } = config;
  const isLimited = limit.mode !== 'off' || classes.some(({ serversMax }) => serversMax !== undefined);
  if (admission.mode === 'enforce' && !isLimited)
    advice.push(
      'admission.mode is enforce, but limit.mode is off and no class has serversMax: nothing limits how many servers are at work (limit: { mode: adaptive, min: 4, max: 40 })',
    );
  if (limit.mode !== 'off' && admission.mode === 'observe')
    advice.push(
      'admission.mode is observe: limit and classes are counted, and hold nothing back (admission: { mode: enforce })',
    );
  const several = Object.entries(databases).find(([, { hosts, control }]) => hosts.length > 1 && control === undefined);
  if (several !== undefined)
    advice.push(
      `databases.${several[0]} has several hosts and no control user: which of them is the primary is not found out`,
    );
  const known = users === null ? null : new Set(users);
  if (known !== null && !auth.admins.some((admin) => known.has(admin)))
    advice.push(
      `nobody of auth.admins (${auth.admins.join(', ')}) is in auth.users: the console and the switches are closed to people`,
    );
  if (state.dir === null && (classes.length > 0 || Object.keys(config.ledgers).length > 0))
    advice.push('state.dir is not set: switches, baselines and what is known of reserves are forgotten at a restart');
  return advice;
}
