/**
 * Who may change something over HTTP. Called by ops/http.
 *
 * The one idea: a browser of somebody who may is the way in for somebody who may not. So besides a token or an admin's login,
 * the request must name this host in Host (else it may be a name that was made to point here: DNS rebinding), and
 * if it says where it comes from, it must come from here.
 */
import { createHash, timingSafeEqual } from 'node:crypto';
import { readFileSync } from 'node:fs';
import type { IncomingHttpHeaders } from 'node:http';
import { isIP } from 'node:net';
import type { FailedLogins } from '../client/failures.ts';
import { md5Of, type Users, verifierOf } from '../client/users.ts';
import type { Config } from '../config/schema.ts';
import { md5Secret } from '../protocol/md5.ts';
import { isPasswordOf } from '../protocol/scram.ts';

/** Its `actor`, or why not, with the HTTP status to say so. */
export type Access = { actor: string } | { status: 401 | 403 | 429; why: string };

interface House {
  ops: Config['ops'];
  auth: Config['auth'];
  users: Users;
  failures: FailedLogins;
  /** Monotonic ms. */
  now: number;
}

/** Does the request bring the token? Without one configured, everybody does. */
export function hasToken(headers: IncomingHttpHeaders, tokenFile: string | null): boolean {
  return tokenFile === null || isEqual(headers.authorization ?? '', `Bearer ${readFileSync(tokenFile, 'utf8').trim()}`);
}

/** May this request, from `address`, change something? */
export async function accessOf(
  headers: IncomingHttpHeaders,
  address: string,
  { ops, auth, users, failures, now }: House,
): Promise<Access> {
  if (auth.method === 'trust' && !isLoopback(ops.host))
    return { status: 403, why: 'changes are off, because auth.method is trust and ops.host is not a loopback address' };
  // A browser sends no token by itself.
  if (ops.tokenFile !== null && hasToken(headers, ops.tokenFile)) return { actor: 'token' };
  const { host = '', origin } = headers;
  const name = host.replace(/:\d+$/, '').replace(/^\[(.*)\]$/, '$1');
  if (isIP(name) === 0 && name !== 'localhost' && name !== ops.host)
    return { status: 403, why: 'the header Host must be the address of this server' };
  const site = headers['sec-fetch-site'];
  const isForeign = origin !== undefined && origin !== `http://${host}` && origin !== `https://${host}`;
  if (isForeign || (site !== undefined && site !== 'same-origin' && site !== 'none'))
    return { status: 403, why: 'the request comes from another site' };
  const [, encoded] = /^Basic (\S+)$/.exec(headers.authorization ?? '') ?? [];
  const [, user, password] = /^([^:]*):(.*)$/s.exec(Buffer.from(encoded ?? '', 'base64').toString()) ?? [];
  if (user !== undefined) {
    failures.configure(auth.failures);
    const waitMs = failures.waitOf(address, user, now);
    if (waitMs > 0)
      return {
        status: 429,
        why: `too many logins from this address have failed: try again in ${Math.ceil(waitMs / 1000)} s (auth.failures)`,
      };
    if (auth.admins.includes(user) && (await isRight(user, password!, auth.method, users))) {
      failures.onSuccess(address, user);
      return { actor: user };
    }
    failures.onFailure(address, user, now);
  }
  return {
    status: 401,
    why: 'this needs the token of ops.tokenFile, or the login of one of auth.admins (pgweir: --token-file, or --user and PGPASSWORD)',
  };
}

async function isRight(user: string, password: string, method: string, users: Users): Promise<boolean> {
  if (method === 'trust') return true;
  const secret = users.get(user);
  if (secret === null) return false;
  const verifier = verifierOf(secret);
  if (verifier !== null) return isPasswordOf(password, await verifier);
  return isEqual(md5Secret(password, user), md5Of(secret, user) ?? '');
}

function isLoopback(host: string): boolean {
  return host === 'localhost' || host === '::1' || /^127\./.test(host);
}

/** Compares in a time that tells nothing of where they differ. */
function isEqual(a: string, b: string): boolean {
  const digest = (text: string) => createHash('sha256').update(text).digest();
  return timingSafeEqual(digest(a), digest(b));
}
