/**
 * Who may log in from where, and how: rules of a file as Postgres' pg_hba.conf, and maps of a file as its pg_ident.conf
 * (Postgres manual, "The pg_hba.conf File", "User Name Maps"). Pure but for reading them. Read by app at the start and at a
 * reload, and by cli (check); asked by client/authenticate.
 *
 * The one idea: the first rule that fits decides, and none means no. What cannot be done here, or would be less safe than it looks,
 * is an error with its line, never ignored: a rule that is not understood might have been the one that keeps somebody out.
 */
import { readFileSync } from 'node:fs';
import { BlockList, isIP, isIPv6 } from 'node:net';
import { networkInterfaces } from 'node:os';
import type { Config } from '../config/schema.ts';

export type HbaMethod = 'trust' | 'reject' | 'md5' | 'scram-sha-256' | 'cert';

export interface HbaRule {
  line: number;
  type: 'local' | 'host' | 'hostssl' | 'hostnossl';
  databases: readonly Name[];
  users: readonly Name[];
  /** By family; null: any. */
  addresses: Networks | null;
  method: HbaMethod;
  /** Name of the map from certificates to users; '': the name must be the user. */
  map: string;
  /** What else the certificate must be: nothing, good, or good and the user's. */
  clientCertificate: 'no' | 'verify-ca' | 'verify-full';
  /** Which of its names counts. */
  clientName: 'CN' | 'DN';
}

type Networks = Record<'ipv4' | 'ipv6', BlockList>;

/** What a name in the file stands for. */
type Name =
  | { kind: 'all' | 'sameuser' | 'replication' }
  | { kind: 'name' | 'group'; name: string }
  | { kind: 'pattern'; pattern: RegExp };

/** Who asks to be let in. */
export interface Applicant {
  database: string;
  user: string;
  /** Null: by a Unix socket. */
  address: string | null;
  isTls: boolean;
  /** A physical replication connection, which has no database. */
  isReplication: boolean;
}

/** Is `user` a member of `group`, directly or not? Null: not known yet. */
export type IsMember = (user: string, group: string) => boolean | null;

interface NamedText {
  name: string;
  text: string;
}

interface Word {
  text: string;
  isQuoted: boolean;
}

/** Why methods of Postgres are not there. */
const refusedMethods: Readonly<Record<string, string>> = {
  peer: 'peer cannot be done: Node does not tell who is at the other end of a Unix socket; use scram-sha-256',
  ident: 'ident is not supported; use cert with a map, or scram-sha-256',
  password: 'password would send it in clear text; use scram-sha-256',
  gss: 'gss is not supported; use scram-sha-256 or cert',
  sspi: 'sspi is not supported; use scram-sha-256 or cert',
  ldap: 'ldap is not supported; use scram-sha-256 with auth.query',
  radius: 'radius is not supported; use scram-sha-256 with auth.query',
  pam: 'pam is not supported; use scram-sha-256 with auth.query',
  bsd: 'bsd is not supported; use scram-sha-256',
  oauth: 'oauth is not supported; use scram-sha-256 or cert',
};
const methods: readonly string[] = ['trust', 'reject', 'md5', 'scram-sha-256', 'cert'];
const types: readonly string[] = ['local', 'host', 'hostssl', 'hostnossl', 'hostnogssenc'];

/** A fault in one of the files, as file:line:1: what. */
class HbaError extends Error {}

/** Null: there are no rules. Throws when there is something wrong with the files. */
export function readHba({ auth, databases, listen }: Config, path: (file: string) => string): Hba | null {
  if (auth.hba === null) return null;
  const read = (file: string) => ({ name: file, text: readFileSync(path(file), 'utf8') });
  const hba = new Hba(read(auth.hba), auth.ident === null ? null : read(auth.ident));
  if (hba.groups.length > 0 && Object.values(databases).every(({ control }) => control === undefined))
    throw new Error(
      `${auth.hba}: +${hba.groups[0]} needs a database with a control user, who is asked for its members`,
    );
  const certificate = hba.rules.find(({ clientCertificate }) => clientCertificate !== 'no');
  if (certificate !== undefined && listen.tls.ca === undefined)
    throw new Error(`${auth.hba}:${certificate.line}:1: certificates need listen.tls with ca`);
  return hba;
}

export class Hba {
  readonly rules: readonly HbaRule[];
  /** Groups whose members must be known. */
  readonly groups: readonly string[];
  readonly #maps: ReadonlyMap<string, readonly MapLine[]>;

  /** Throws HbaError. `ident`: the file with the maps, null: there is none. */
  constructor(file: NamedText, ident: NamedText | null) {
    this.rules = linesOf(file).flatMap(({ line, words, complain }) => readRule(words, line, complain) ?? []);
    this.#maps = ident === null ? new Map() : readMaps(ident);
    for (const { map, line } of this.rules)
      if (map !== '' && !this.#maps.has(map))
        throw new HbaError(`${file.name}:${line}:1: there is no map "${map}" in auth.ident`);
    const named = this.rules.flatMap(({ users }) => users).flatMap((user) => (user.kind === 'group' ? user.name : []));
    this.groups = [...new Set(named)];
  }

  /** The first rule for `applicant`; null: there is none; 'unknown': whether one is depends on a group that is not known yet. */
  find(applicant: Applicant, isMember: IsMember): HbaRule | null | 'unknown' {
    for (const rule of this.rules) {
      if (!fitsConnection(rule, applicant) || !rule.databases.some((name) => fitsDatabase(name, applicant))) continue;
      const fits = rule.users.map((name) => fitsUser(name, applicant.user, isMember));
      if (fits.includes(true)) return rule;
      if (fits.includes(null)) return 'unknown';
    }
    return null;
  }

  /** May who has a certificate with this name be `user`? */
  maps(map: string, name: string, user: string): boolean {
    if (map === '') return name === user;
    return this.#maps.get(map)!.some(({ from, to }) => {
      if (typeof from === 'string') return from === name && (to === null || to === user);
      const match = from.exec(name);
      return match !== null && (to === null || to.replaceAll('\\1', () => match[1] ?? '') === user);
    });
  }
}

function fitsConnection({ type, addresses }: HbaRule, { address, isTls }: Applicant): boolean {
  if (address === null) return type === 'local';
  if (type === 'local' || (type === 'hostssl' && !isTls) || (type === 'hostnossl' && isTls)) return false;
  const plain = address.replace(/^::ffff:(?=\d+\.)/, '');
  // By family, because a BlockList takes any IPv4 address for one of ::/0.
  const family = isIPv6(plain) ? 'ipv6' : 'ipv4';
  return addresses === null || addresses[family].check(plain, family);
}

function fitsDatabase(name: Name, { database, user, isReplication }: Applicant): boolean {
  if (isReplication) return name.kind === 'replication';
  switch (name.kind) {
    case 'all':
      return true;
    case 'sameuser':
      return database === user;
    case 'name':
      return name.name === database;
    case 'pattern':
      return name.pattern.test(database);
    default:
      return false;
  }
}

function fitsUser(name: Name, user: string, isMember: IsMember): boolean | null {
  switch (name.kind) {
    case 'all':
      return true;
    case 'name':
      return name.name === user;
    case 'pattern':
      return name.pattern.test(user);
    case 'group':
      return name.name === user || isMember(user, name.name);
    default:
      return false;
  }
}

/** Lines with something on them, as lists of words separated by commas: `a,"b c"` is one entry of two words. */
function linesOf({ name, text }: NamedText): { line: number; words: Word[][]; complain: Complain }[] {
  const found: { line: number; words: Word[][]; complain: Complain }[] = [];
  const lines = text.split(/\r?\n/);
  for (let at = 0; at < lines.length; at++) {
    const line = at + 1;
    let whole = lines[at]!;
    // A backslash at its end joins a line with the next one.
    while (whole.endsWith('\\') && at + 1 < lines.length) whole = whole.slice(0, -1) + lines[++at]!;
    const complain = (why: string) => new HbaError(`${name}:${line}:1: ${why}`);
    const words = wordsOf(whole, complain);
    if (words.length > 0) found.push({ line, words, complain });
  }
  return found;
}

function wordsOf(line: string, complain: Complain): Word[][] {
  const entries: Word[][] = [];
  let isJoined = false;
  for (const [word, comma] of line.matchAll(/#.*$|(,)|(?:"(?:[^"]|"")*"|[^\s,#"])+|"/g)) {
    if (word.startsWith('#')) break;
    if (word === '"') throw complain('a quote does not end');
    if (comma !== undefined) {
      isJoined = true;
      continue;
    }
    const isQuoted = word.startsWith('"');
    const text = word.replaceAll(/"((?:[^"]|"")*)"/g, (_, inner: string) => inner.replaceAll('""', '"'));
    if (isJoined && entries.length > 0) entries.at(-1)!.push({ text, isQuoted });
    else entries.push([{ text, isQuoted }]);
    isJoined = false;
  }
  return entries;
}

type Complain = (why: string) => HbaError;

/** Null: the rule can fit nobody (GSS encryption is never spoken here). */
function readRule(words: Word[][], line: number, complain: Complain): HbaRule | null {
  const [type = ''] = words[0]!.map(({ text }) => text);
  if (/^include/.test(type) || type.startsWith('@')) throw complain('files cannot be included');
  if (type === 'hostgssenc') return null;
  if (!types.includes(type)) throw complain(`"${type}" is not one of ${types.join(', ')}`);
  const isLocal = type === 'local';
  const rest = words.slice(1);
  if (rest.length < (isLocal ? 3 : 4))
    throw complain(isLocal ? 'expected database, user, method' : 'expected database, user, address, method');
  const databases = rest.shift()!.map((word) => nameOf(word, true, complain));
  const users = rest.shift()!.map((word) => nameOf(word, false, complain));
  const addresses = isLocal ? null : readAddress(rest, complain);
  if (rest.length === 0) throw complain('the method is missing');
  const method = only(rest.shift()!, complain);
  if (Object.hasOwn(refusedMethods, method)) throw complain(refusedMethods[method]!);
  if (!methods.includes(method)) throw complain(`"${method}" is not one of ${methods.join(', ')}`);
  if (method === 'cert' && type !== 'hostssl') throw complain('cert needs hostssl');
  const rule: HbaRule = {
    line,
    type: type === 'hostnogssenc' ? 'host' : (type as HbaRule['type']),
    databases,
    users,
    addresses,
    method: method as HbaMethod,
    map: '',
    clientCertificate: method === 'cert' ? 'verify-full' : 'no',
    clientName: 'CN',
  };
  for (const option of rest) readOption(only(option, complain), rule, complain);
  return rule;
}

/** The one word of an entry. */
function only(words: readonly Word[], complain: Complain): string {
  if (words.length > 1) throw complain(`only one is possible of ${words.map(({ text }) => text).join(', ')}`);
  return words[0]!.text;
}

function readOption(option: string, rule: HbaRule, complain: Complain): void {
  const [name, value = ''] = option.split('=', 2) as [string, string?];
  if (name === 'map') {
    if (rule.method !== 'cert' && rule.clientCertificate !== 'verify-full') throw complain('map needs the method cert');
    rule.map = value;
  } else if (name === 'clientcert') {
    if (rule.type !== 'hostssl') throw complain('clientcert needs hostssl');
    if (value !== 'verify-ca' && value !== 'verify-full') throw complain('clientcert is verify-ca or verify-full');
    if (rule.method === 'cert' && value === 'verify-ca') throw complain('cert always means verify-full');
    rule.clientCertificate = value;
  } else if (name === 'clientname') {
    if (value !== 'CN' && value !== 'DN') throw complain('clientname is CN or DN');
    rule.clientName = value;
  } else throw complain(`the option "${option}" is not known`);
}

function nameOf({ text, isQuoted }: Word, isDatabase: boolean, complain: Complain): Name {
  // As in Postgres, quotes take the meaning of all but a pattern, whose commas need them.
  if (text.startsWith('/')) return { kind: 'pattern', pattern: patternOf(text.slice(1), complain) };
  if (isQuoted) return { kind: 'name', name: text };
  if (text === 'all') return { kind: 'all' };
  if (text.startsWith('@')) throw complain('files cannot be included');
  if (isDatabase) {
    if (text === 'samerole' || text === 'samegroup') throw complain(`${text} is not supported; name the databases`);
    if (text === 'sameuser' || text === 'replication') return { kind: text };
  } else if (text.startsWith('+')) return { kind: 'group', name: text.slice(1) };
  return { kind: 'name', name: text };
}

/** POSIX's patterns of those files are close enough to ours; one that is not is an error. */
function patternOf(text: string, complain: Complain): RegExp {
  try {
    return new RegExp(text, 'su');
  } catch {
    throw complain(`"${text}" is not a pattern`);
  }
}

/** Takes the address, and its mask if that stands beside it. */
function readAddress(rest: Word[][], complain: Complain): Networks | null {
  const text = only(rest.shift()!, complain);
  if (text === 'all') return null;
  const networks: Networks = { ipv4: new BlockList(), ipv6: new BlockList() };
  if (text === 'samehost' || text === 'samenet') {
    for (const each of Object.values(networkInterfaces()).flatMap((all) => all ?? [])) {
      const family = each.family === 'IPv6' ? 'ipv6' : 'ipv4';
      if (text === 'samehost' || each.cidr === null) networks[family].addAddress(each.address, family);
      else networks[family].addSubnet(each.address, Number(each.cidr.split('/')[1]), family);
    }
    return networks;
  }
  const [address, prefix, ...more] = text.split('/') as [string, string?, ...string[]];
  if (more.length > 0 || (prefix !== undefined && !/^\d{1,3}$/.test(prefix)))
    throw complain(`"${text}" is not a network`);
  if (/^::ffff:/i.test(address)) throw complain(`"${text}": write the address as IPv4`);
  if (isIP(address) === 0) throw complain(`"${text}" is not an address, and names of hosts are not looked up`);
  const family = isIPv6(address) ? 'ipv6' : 'ipv4';
  const bits = family === 'ipv6' ? 128 : 32;
  let length = Number(prefix ?? Number.NaN);
  if (prefix === undefined) {
    const mask = rest[0] === undefined ? '' : only(rest[0], complain);
    if (isIP(mask) === 0) throw complain(`"${text}" needs a prefix (/${bits}) or a mask`);
    rest.shift();
    const binary = binaryOf(mask);
    if (binary === null || isIP(mask) !== isIP(address) || /01/.test(binary))
      throw complain(`"${mask}" is not a mask for it`);
    length = binary.replaceAll('0', '').length;
  }
  if (!Number.isInteger(length) || length < 0 || length > bits) throw complain(`"${text}" is not a network`);
  networks[family].addSubnet(address, length, family);
  return networks;
}

/** The bits of an address; null for an IPv6 mask that is not written out to groups. */
function binaryOf(mask: string): string | null {
  if (!isIPv6(mask))
    return mask
      .split('.')
      .map((part) => Number(part).toString(2).padStart(8, '0'))
      .join('');
  const [head = '', tail = ''] = mask.split('::') as [string, string?];
  const groups = (part: string) => (part === '' ? [] : part.split(':'));
  const [left, right] = [groups(head), groups(tail)];
  const all = [...left, ...Array<string>(8 - left.length - right.length).fill('0'), ...right];
  return all.map((group) => Number.parseInt(group, 16).toString(2).padStart(16, '0')).join('');
}

interface MapLine {
  from: string | RegExp;
  /** The user, in which \1 stands for what the pattern's first group has found; null: any. */
  to: string | null;
}

function readMaps(file: NamedText): Map<string, MapLine[]> {
  const maps = new Map<string, MapLine[]>();
  for (const { words, complain } of linesOf(file)) {
    if (words.length !== 3) throw complain('expected the name of the map, a name of a certificate, and a user');
    for (const each of words) only(each, complain);
    const [map, from, to] = words.map(([word]) => word!);
    if (!to!.isQuoted && /^[+/@]/.test(to!.text))
      throw complain(`"${to!.text}": only names of users, and all, are supported here`);
    const isPattern = from!.text.startsWith('/');
    const lines = maps.get(map!.text) ?? [];
    if (to!.text.includes('\\1') && !(isPattern && /\((?!\?)/.test(from!.text)))
      throw complain('\\1 needs a pattern with a group in parentheses');
    lines.push({
      from: isPattern ? patternOf(from!.text.slice(1), complain) : from!.text,
      to: to!.text === 'all' && !to!.isQuoted ? null : to!.text,
    });
    maps.set(map!.text, lines);
  }
  return maps;
}
