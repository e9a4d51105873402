/**
 * How Postgres spells the values of reported parameters that clients ask for at startup: `unicode` is told as `UTF8`,
 * DateStyle `german` as `German, DMY`. Called by client/listener, so that a login tells drivers what a server would
 * tell them, without asking one. What is not known here stays as it was written until a server has spelt it.
 */

const encodings: Record<string, string> = {
  unicode: 'UTF8',
  utf8: 'UTF8',
  sqlascii: 'SQL_ASCII',
  eucjp: 'EUC_JP',
  euccn: 'EUC_CN',
  euckr: 'EUC_KR',
  euctw: 'EUC_TW',
  eucjis2004: 'EUC_JIS_2004',
  latin1: 'LATIN1',
  iso88591: 'LATIN1',
  latin2: 'LATIN2',
  iso88592: 'LATIN2',
  latin3: 'LATIN3',
  iso88593: 'LATIN3',
  latin4: 'LATIN4',
  iso88594: 'LATIN4',
  latin5: 'LATIN5',
  iso88599: 'LATIN5',
  latin6: 'LATIN6',
  iso885910: 'LATIN6',
  latin7: 'LATIN7',
  iso885913: 'LATIN7',
  latin8: 'LATIN8',
  iso885914: 'LATIN8',
  latin9: 'LATIN9',
  iso885915: 'LATIN9',
  latin10: 'LATIN10',
  iso885916: 'LATIN10',
  iso88595: 'ISO_8859_5',
  iso88596: 'ISO_8859_6',
  iso88597: 'ISO_8859_7',
  iso88598: 'ISO_8859_8',
  win1250: 'WIN1250',
  windows1250: 'WIN1250',
  win1251: 'WIN1251',
  win: 'WIN1251',
  windows1251: 'WIN1251',
  win1252: 'WIN1252',
  windows1252: 'WIN1252',
  win1253: 'WIN1253',
  windows1253: 'WIN1253',
  win1254: 'WIN1254',
  windows1254: 'WIN1254',
  win1255: 'WIN1255',
  windows1255: 'WIN1255',
  win1256: 'WIN1256',
  windows1256: 'WIN1256',
  win1257: 'WIN1257',
  windows1257: 'WIN1257',
  win1258: 'WIN1258',
  windows1258: 'WIN1258',
  win866: 'WIN866',
  alt: 'WIN866',
  windows866: 'WIN866',
  win874: 'WIN874',
  koi8: 'KOI8R',
  koi8r: 'KOI8R',
  koi8u: 'KOI8U',
  sjis: 'SJIS',
  mskanji: 'SJIS',
  shiftjis: 'SJIS',
  win932: 'SJIS',
  windows932: 'SJIS',
  shiftjis2004: 'SHIFT_JIS_2004',
  big5: 'BIG5',
  win950: 'BIG5',
  windows950: 'BIG5',
  gbk: 'GBK',
  win936: 'GBK',
  windows936: 'GBK',
  gb18030: 'GB18030',
  uhc: 'UHC',
  win949: 'UHC',
  windows949: 'UHC',
  johab: 'JOHAB',
  muleinternal: 'MULE_INTERNAL',
};

const styles: Record<string, string> = { iso: 'ISO', sql: 'SQL', postgres: 'Postgres', german: 'German' };
const orders: Record<string, string> = {
  dmy: 'DMY',
  euro: 'DMY',
  european: 'DMY',
  mdy: 'MDY',
  us: 'MDY',
  noneuro: 'MDY',
  noneuropean: 'MDY',
  ymd: 'YMD',
};
const switches: Record<string, string> = {
  on: 'on',
  true: 'on',
  yes: 'on',
  1: 'on',
  t: 'on',
  y: 'on',
  off: 'off',
  false: 'off',
  no: 'off',
  0: 'off',
  f: 'off',
  n: 'off',
};

/** `value` of the reported parameter `name` as Postgres would report it; `login` is what it reports without being asked. */
export function spell(name: string, value: string, login: string): string {
  const lower = value.toLowerCase();
  switch (name) {
    case 'client_encoding':
      return encodings[lower.replaceAll(/[^a-z0-9]/g, '')] ?? value;
    case 'DateStyle':
      return spellDateStyle(lower, login) ?? value;
    case 'IntervalStyle':
      return lower;
    case 'standard_conforming_strings':
    case 'default_transaction_read_only':
      return switches[lower] ?? value;
    default:
      return value;
  }
}

/** check_datestyle: a style and an order; what is left out stays, but German implies DMY. */
function spellDateStyle(value: string, login: string): string | null {
  let [style, order] = login.split(', ') as [string, string?];
  let hasOrder = false;
  for (const word of value.split(',')) {
    const trimmed = word.trim();
    if (orders[trimmed] !== undefined) {
      order = orders[trimmed];
      hasOrder = true;
    } else if (styles[trimmed] !== undefined) {
      style = styles[trimmed]!;
      if (style === 'German' && !hasOrder) order = 'DMY';
    } else return null;
  }
  return `${style}, ${order ?? 'MDY'}`;
}
