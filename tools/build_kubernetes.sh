#!/usr/bin/env bash
# Build the control plane that tests/jobs/executors/test_kubernetes_real.py runs: kube-apiserver and
# kube-controller-manager from Debian's source package of Kubernetes, and etcd from its package.
# Needs Debian 12 and root (for Debian's Go); about 6 minutes of processor time, once.
set -euo pipefail
target=${KUBERNETES_PROGRAMS:-$HOME/.cache/enginehouse/test-kubernetes}
if [ -x "$target/kube-controller-manager" ]; then exit 0; fi
space=$(mktemp -d)
trap 'chmod -R u+w "$space"; rm -rf "$space"' EXIT
mkdir -p "$target" "$space/lists/partial" "$space/etcd" "$space/gopath/src/k8s.io"

mirror=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/debian.sources 2>/dev/null |
  sed -n 's/^URIs: *//p; s/^deb [^#]*\(http[^ ]*debian\) .*/\1/p' | head -1) || true
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
echo "deb-src [signed-by=$keyring] $mirror bookworm main" >"$space/sources.list"
sources=(
  -o "Dir::Etc::SourceList=$space/sources.list" -o Dir::Etc::SourceParts=/dev/null
  -o "Dir::State::Lists=$space/lists"
)
apt-get -qq update
apt-get -qq install -y --no-install-recommends golang-1.19-go dpkg-dev
apt-get -qq "${sources[@]}" update
cd "$space"
apt-get -qq download etcd-server
dpkg -x etcd-server_*.deb etcd
apt-get -qq "${sources[@]}" source kubernetes
mv kubernetes-1.20*/ gopath/src/k8s.io/kubernetes

export GOPATH=$space/gopath GOCACHE=$space/cache GO111MODULE=off GOFLAGS='' CGO_ENABLED=0
export PATH=/usr/lib/go-1.19/bin:$PATH
cd "$GOPATH/src/k8s.io/kubernetes"
# The package leaves out the generated OpenAPI definitions, without which the API server panics.
go build -o "$space/openapi-gen" ./vendor/k8s.io/kube-openapi/cmd/openapi-gen
packages=$(grep -rl --include='*.go' -e '+k8s:openapi-gen=' staging/src/k8s.io pkg |
  grep -v _test.go | xargs -n1 dirname | sort -u | grep -vE 'code-generator|kube-openapi|sample-' |
  sed -e 's#^staging/src/#k8s.io/kubernetes/vendor/#' -e 's#^pkg/#k8s.io/kubernetes/pkg/#' |
  paste -sd,)
"$space/openapi-gen" -O zz_generated.openapi -i "$packages" \
  -p k8s.io/kubernetes/pkg/generated/openapi -h hack/boilerplate/boilerplate.generatego.txt \
  -r "$space/violations"
version=k8s.io/kubernetes/vendor/k8s.io/component-base/version
# Without the SDKs of cloud providers, which take two more minutes to compile.
flags="-s -w -X $version.gitVersion=v1.20.2 -X $version.gitMajor=1 -X $version.gitMinor=20"
for program in kube-apiserver kube-controller-manager; do
  go build -tags providerless -ldflags "$flags" -o "$space/$program" "./cmd/$program"
done
install "$space/etcd/usr/bin/etcd" "$space/kube-apiserver" "$target"
install "$space/kube-controller-manager" "$target"  # last: it is what the check above looks for
