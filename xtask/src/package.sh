# Run as root on a clean Debian that holds /pb-nats.deb. Whatever is not as it should be ends it.

is() { # a command, and what it is to say
    said=$($1) || { echo "$1: failed" >&2; exit 1; }
    [ "$said" = "$2" ] || { echo "$1: '$said' instead of '$2'" >&2; exit 1; }
}
export DEBIAN_FRONTEND=noninteractive

# nats-server's group is there first, as it is where both are installed.
addgroup --quiet --system nats
apt-get install --yes --quiet --no-install-recommends /pb-nats.deb

echo "── the program, its manual pages and its completions are there"
pb-nats --version | grep -q '^pb-nats [0-9]'
(ldd /usr/bin/pb-nats 2>&1 || true) | grep -q -e 'statically linked' -e 'not a dynamic'
for page in pb-nats pb-nats-run pb-nats-backups-restore; do
    test -s "/usr/share/man/man1/$page.1.gz"
done
bash -n /usr/share/bash-completion/completions/pb-nats

echo "── its user is a system user who can do nothing but be in nats-server's group"
is "id -nG pb-nats" "pb-nats nats"
is "getent passwd pb-nats" "$(getent passwd pb-nats | cut -d: -f1-5):/nonexistent:/usr/sbin/nologin"
test "$(id -u pb-nats)" -lt 1000

echo "── its folder lets nats-server through, and nobody see what is there"
is "stat -c %U:%G:%a /etc/pb-nats" "pb-nats:pb-nats:751"

echo "── systemd takes the unit, which is not started before there are settings"
systemd-analyze verify --man=no /usr/lib/systemd/system/pb-nats.service
test "$(systemctl is-enabled pb-nats || true)" = disabled

echo "── the settings to begin with are ones"
cd /etc/pb-nats
cp /usr/share/doc/pb-nats/examples/pb-nats.toml .
echo 'include "pb-nats/auth.conf"' > /etc/nats-server.conf
echo token > token && chown pb-nats token && chmod 0600 token
setpriv --reuid pb-nats --regid pb-nats --init-groups pb-nats once > /dev/null 2> /tmp/said && exit 1
grep -q 'the records could not be read' /tmp/said || { cat /tmp/said >&2; exit 1; }

echo "── what is there twice is as it is there once"
chmod 0700 /etc/pb-nats
apt-get install --yes --quiet --reinstall --no-install-recommends /pb-nats.deb
is "stat -c %a /etc/pb-nats" 700

echo "── removal leaves the settings, a purge the auth file alone"
touch auth.conf && mkdir backups && touch backups/auth.conf.1
apt-get remove --yes --quiet pb-nats
test ! -e /usr/bin/pb-nats
test -e pb-nats.toml
apt-get purge --yes --quiet pb-nats
is "find /etc/pb-nats -type f" /etc/pb-nats/auth.conf
test -z "$(find /usr /etc /var/lib/systemd -name '*pb-nats*' ! -path '/etc/pb-nats*')"
rm auth.conf
cd /
apt-get install --yes --quiet --no-install-recommends /pb-nats.deb
apt-get purge --yes --quiet pb-nats
test ! -e /etc/pb-nats
echo "── all of it holds"
