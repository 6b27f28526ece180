"""Asks a DNS server, one question after another, and prints its answers whole.

    ask.py HOST PORT < QUESTIONS

A question is a line with a name and a type. Prints a line for each: question, response code, and every record of the
answer, the authority and the additional section, in an order of their own. Nothing is asked twice: a server that does
not answer at once is told of.
"""

import sys

import dns.exception
import dns.message
import dns.query
import dns.rcode
import dns.rdatatype

# CoreDNS gives etcd five seconds.
PATIENCE_S = 10


def record(name, ttl, data):
    if data.rdtype == dns.rdatatype.SOA:
        data = data.replace(serial=0)  # the time of day
    return f"{name} {ttl} {dns.rdatatype.to_text(data.rdtype)} {data}"


def section(rrsets):
    return ", ".join(sorted(record(rrset.name, rrset.ttl, data) for rrset in rrsets for data in rrset))


def main():
    host, port = sys.argv[1:]
    for line in sys.stdin:
        name, kind = line.split()
        question = dns.message.make_query(name, kind, use_edns=0)
        try:
            answer = dns.query.udp(question, host, port=int(port), timeout=PATIENCE_S)
            told = [dns.rcode.to_text(answer.rcode())]
            told += [f"[{section(rrsets)}]" for rrsets in (answer.answer, answer.authority, answer.additional)]
        except (dns.exception.DNSException, OSError) as why:
            told = [type(why).__name__, str(why)]
        print(name, kind, *told, flush=True)


main()
