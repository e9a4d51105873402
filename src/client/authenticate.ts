/**
 * Finds out whether a client is who it says: by `auth.method`, or by the first rule of `auth.hba` that fits. Called by client/login.
 *
 * What is costly (key derivation) runs off the event loop. A user that does not exist is told from a wrong password neither by the
 * answer nor by the messages before it; only md5 asks one question of those with a hash, and another of those with a verifier.
 */
import { randomBytes } from 'node:crypto';
import type { AuthConfig } from '../config/schema.ts';
import * as encode from '../protocol/encode.ts';
import { md5Answer } from '../protocol/md5.ts';
import { stringEnd } from '../protocol/messages.ts';
import { endPointOf, type Keys, mockVerifier, ScramServer, type Verifier } from '../protocol/scram.ts';
import { fatal, type Refusal, SqlState } from '../protocol/sqlstate.ts';
import type { AuthQuery } from './auth-query.ts';
import type { Hba, HbaMethod, HbaRule, IsMember } from './hba.ts';
import type { Incoming } from './incoming.ts';
import type { ClientIdentity } from './login.ts';
import { md5Of, type UserSecret, type Users, verifierOf } from './users.ts';

export interface Authentication {
  auth: AuthConfig;
  users: Users;
  /** Rules, where the method is hba. */
  hba: Hba | null;
  isMember: IsMember;
  /** Secrets of users of a database that are not among `users`; null: nobody is asked. */
  authQueryOf: (database: string) => AuthQuery | null;
}

/** How this client must prove itself. */
type Demand = Pick<HbaRule, 'map' | 'clientCertificate' | 'clientName'> & { method: HbaMethod };

/** A new secret per process makes the salts of users who do not exist stable while it runs. */
const mockSecret = randomBytes(32);

/** Null when the client has proved to be its user. */
export async function authenticate(
  incoming: Incoming,
  client: ClientIdentity,
  context: Authentication,
): Promise<Refusal | null> {
  const demand = demandOf(incoming, client, context);
  if ('sqlstate' in demand) return demand;
  const badCertificate = checkCertificate(incoming, client, demand, context.hba);
  if (badCertificate !== null || demand.method === 'cert') return badCertificate;
  const { user, database } = client;
  const listed = context.users.get(user);
  const query = context.authQueryOf(database);
  const asked = listed === null ? query : null;
  if (demand.method === 'trust' && (context.auth.users === null || listed !== null)) return null;
  let secret: UserSecret | null = listed;
  try {
    if (asked === null) await query?.pause();
    else secret = await asked.find(database, user);
  } catch {
    // Said of every user that is not in the file, whether it exists or not; why is in the log.
    return fatal(SqlState.CannotConnectNow, 'nobody can be asked for the password at the moment', {
      hint: 'connect again later; the log of the proxy says why (auth.query)',
    });
  }
  if (demand.method === 'trust')
    return secret !== null
      ? null
      : fatal(SqlState.InvalidAuthorization, `"trust" authentication failed for user "${user}"`, {
          hint: 'it is not in auth.users',
        });
  const isVerifier = secret === null ? context.users.haveVerifiers : secret.kind === 'verifier';
  const keys = await prove(incoming, user, secret, demand.method === 'md5' && !isVerifier, context.users.iterations);
  if (keys === null) {
    asked?.doubt(database, user);
    const more = demand.method === 'md5' ? {} : { detail: 'SASL authentication failed' };
    return fatal(SqlState.InvalidPassword, `password authentication failed for user "${user}"`, more);
  }
  if (keys === 'md5') return null;
  if (asked === null) context.users.remember(user, keys);
  else asked.remember(database, user, keys);
  return null;
}

/** By the rules, if there are any. */
function demandOf(
  { tls, address }: Incoming,
  client: ClientIdentity,
  { auth, hba, isMember }: Authentication,
): Demand | Refusal {
  const plain = { map: '', clientCertificate: 'no', clientName: 'CN' } as const;
  if (auth.method === 'cert') return { ...plain, method: 'cert', clientCertificate: 'verify-full' };
  if (auth.method !== 'hba') return { ...plain, method: auth.method };
  const { user, database, replication } = client;
  // Physical replication names no database; with `replication=database` it is a database's affair.
  const isReplication = replication !== null && replication !== 'database';
  const rule = hba!.find({ user, database, address, isTls: tls !== null, isReplication }, isMember);
  if (rule === 'unknown')
    return fatal(SqlState.CannotConnectNow, 'who is a member of which group is not known yet', {
      hint: 'connect again later; the log of the proxy says why (auth.hba)',
    });
  const from = address === null ? 'host "[local]"' : `host "${address}"`;
  const who = `${from}, user "${user}", ${isReplication ? 'replication' : `database "${database}"`}`;
  const encryption = tls === null ? 'no encryption' : 'SSL encryption';
  if (rule === null)
    return fatal(SqlState.InvalidAuthorization, `no pg_hba.conf entry for ${who}, ${encryption}`, {
      hint: 'no rule of auth.hba fits',
    });
  if (rule.method === 'reject')
    return fatal(SqlState.InvalidAuthorization, `pg_hba.conf rejects connection for ${who}, ${encryption}`, {
      hint: `line ${rule.line} of auth.hba`,
    });
  return rule;
}

function checkCertificate(
  { certificate }: Incoming,
  { user }: ClientIdentity,
  { method, map, clientCertificate, clientName }: Demand,
  hba: Hba | null,
): Refusal | null {
  if (clientCertificate === 'no') return null;
  if (certificate.kind !== 'good')
    return fatal(SqlState.InvalidAuthorization, 'connection requires a valid client certificate', {
      hint: 'connect with sslcert and sslkey; listen.tls.ca says whose certificates are good',
    });
  const name = clientName === 'CN' ? certificate.names.commonName : certificate.names.subject;
  const isUsers = hba === null ? name === user : hba.maps(map, name, user);
  if (clientCertificate === 'verify-ca' || isUsers) return null;
  // Which names a certificate has its owner knows; which user it could be, nobody else.
  const how = method === 'cert' ? 'certificate' : 'client certificate';
  return fatal(SqlState.InvalidAuthorization, `${how} authentication failed for user "${user}"`);
}

/** By md5 if `byHash`, otherwise by SCRAM, as Postgres and PgBouncer do for a user of whom only a verifier is known. Null: it has not. 'md5': it has, and nothing is known by which to log in as it. */
async function prove(
  incoming: Incoming,
  user: string,
  secret: UserSecret | null,
  byHash: boolean,
  iterations: number | undefined,
): Promise<Keys | 'md5' | null> {
  if (byHash) return (await checkMd5(incoming, secret === null ? null : md5Of(secret, user))) ? 'md5' : null;
  const verifier = secret === null ? null : verifierOf(secret);
  return checkScram(incoming, (await verifier) ?? mockVerifier(user, mockSecret, iterations));
}

async function checkMd5(incoming: Incoming, secret: string | null): Promise<boolean> {
  const salt = randomBytes(4);
  incoming.socket.write(encode.authenticationMd5(salt));
  const body = await incoming.password();
  if (body === null || secret === null) return false;
  return body.toString('utf8', 0, Math.max(0, body.length - 1)) === md5Answer(secret, salt);
}

async function checkScram(incoming: Incoming, verifier: Verifier): Promise<Keys | null> {
  const scram = new ScramServer(verifier, ownEndPoint(incoming));
  const { mechanisms } = scram;
  incoming.socket.write(encode.authenticationSasl(mechanisms));
  const initial = await incoming.password();
  const mechanismEnd = initial === null ? -1 : stringEnd(initial, 0, initial.length);
  if (initial === null || mechanismEnd === -1) return null;
  const mechanism = initial.toString('latin1', 0, mechanismEnd);
  if (!mechanisms.includes(mechanism)) return null;
  const serverFirst = scram.first(initial.toString('utf8', mechanismEnd + 5), mechanism);
  if (serverFirst === null) return null;
  incoming.socket.write(encode.authenticationSaslContinue(serverFirst));
  const response = await incoming.password();
  const final = response === null ? null : scram.final(response.toString('utf8'));
  if (final === null) return null;
  incoming.socket.write(encode.authenticationSaslFinal(final.reply));
  return final.keys;
}

/** What a client within TLS may bind its proof to. */
function ownEndPoint({ tls }: Incoming): Buffer | null {
  const own = tls?.getX509Certificate();
  try {
    return own === undefined ? null : endPointOf(own.raw);
  } catch {
    return null; // A signature of a kind that has no hash of its own, such as Ed25519: then nothing is offered.
  }
}
