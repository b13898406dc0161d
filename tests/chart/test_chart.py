"""The chart: linted, rendered for every file in values/ and every preset, and held against Kubernetes' own
schemas, the program's own check of its configuration, and what the parts of a pod have to agree on.

No cluster takes part. `--manifest` writes helm/seriatim.yaml anew instead.
"""

import copy
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

import helm_python as helm
import jsonschema
import kubernetes_validate
import yaml
from cloudcoil.models.keda.v1alpha1 import ScaledObject

TOP = Path(__file__).resolve().parents[2]
CHART = TOP / "helm/seriatim"
MANIFEST = TOP / "helm/seriatim.yaml"
OWN_CHART = TOP / "examples/own-chart"
VALUES = Path(__file__).parent / "values"
BINARY = os.path.abspath(os.environ.get("SERIATIM", TOP / "target/debug/seriatim"))
# The oldest with native sidecars by default, and the newest one, whose preStop hooks can sleep.
VERSIONS = ["1.29", kubernetes_validate.latest_version().rpartition(".")[0]]

# What the kubelet knows of a pod.
PODS = {"metadata.namespace": "staging", "metadata.name": "demo-seriatim-5d8-x7k"}

# What is used of the Prometheus operator's own kinds, with nothing else allowed.
CUSTOM = {
    "ServiceMonitor": {
        "type": "object",
        "additionalProperties": False,
        "required": ["selector", "endpoints"],
        "properties": {
            "selector": {
                "type": "object",
                "additionalProperties": False,
                "required": ["matchLabels"],
                "properties": {"matchLabels": {"type": "object", "additionalProperties": {"type": "string"}}},
            },
            "endpoints": {
                "type": "array",
                "minItems": 1,
                "items": {
                    "type": "object",
                    "additionalProperties": False,
                    "required": ["port"],
                    "properties": {name: {"type": "string"} for name in ("port", "path", "interval", "scrapeTimeout")},
                },
            },
        },
    },
    "PrometheusRule": {
        "type": "object",
        "additionalProperties": False,
        "required": ["groups"],
        "properties": {
            "groups": {
                "type": "array",
                "minItems": 1,
                "items": {
                    "type": "object",
                    "additionalProperties": False,
                    "required": ["name", "rules"],
                    "properties": {
                        "name": {"type": "string"},
                        "interval": {"type": "string"},
                        "rules": {
                            "type": "array",
                            "minItems": 1,
                            "items": {
                                "type": "object",
                                "additionalProperties": False,
                                "required": ["expr"],
                                "oneOf": [{"required": ["alert"]}, {"required": ["record"]}],
                                "properties": {
                                    "alert": {"type": "string"},
                                    "record": {"type": "string"},
                                    "expr": {"type": ["string", "integer"]},
                                    "for": {"type": "string"},
                                    "keep_firing_for": {"type": "string"},
                                    "labels": {"type": "object", "additionalProperties": {"type": "string"}},
                                    "annotations": {"type": "object", "additionalProperties": {"type": "string"}},
                                },
                            },
                        },
                    },
                },
            },
        },
    },
}


class UniqueKeys(yaml.SafeLoader):
    """Refuses a key that stands twice, as Kubernetes does."""


def mapping(loader, node):
    keys = [loader.construct_object(key) for key, _ in node.value]
    twice = {str(key) for key in keys if keys.count(key) > 1}
    if twice:
        raise yaml.YAMLError(f"twice in one mapping: {twice}")
    return yaml.SafeLoader.construct_mapping(loader, node, deep=True)


UniqueKeys.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)


def load(path):
    return yaml.load(path.read_text(), UniqueKeys)


def texts(values, chart=CHART, name="demo", namespace="agents"):
    with helm.Chart.load(str(chart)) as loaded:
        return loaded.render(values=values, name=name, namespace=namespace)


def documents(rendered):
    text = "\n---\n".join(text for path, text in sorted(rendered.items()) if path.endswith(".yaml"))
    return [document for document in yaml.load_all(text, UniqueKeys) if document]


def render(values, **options):
    return documents(texts(values, **options))


def one(documents, kind, suffix=""):
    found = [document for document in documents if document["kind"] == kind and document["metadata"]["name"].endswith(suffix)]
    assert len(found) == 1, f"one {kind} {suffix}: {[document['metadata']['name'] for document in found]}"
    return found[0]


def all_sets():
    """Every set of values, and the version of Kubernetes that it is rendered for."""
    files = sorted(VALUES.glob("*.yaml")) + sorted((CHART / "presets").glob("*.yaml"))
    for file in files:
        values = load(file)
        if values.get("mode") != "gateway":
            values.setdefault("agent", {}).setdefault("image", "registry.example.com/agent:1.0")
        for version in VERSIONS:
            yield f"{file.stem} on {version}", values | {"kubeVersion": version}, version


def pod_of(workload):
    return workload["spec"]["template"]["spec"]


def seriatim_of(pod):
    containers = pod.get("initContainers", []) + pod["containers"]
    found = [container for container in containers if container["name"] == "seriatim"]
    assert len(found) == 1, "a pod has one sidecar"
    return found[0]


def agent_of(pod):
    """The agent's container; a gateway's pod has none."""
    return next((container for container in pod["containers"] if container["name"] != "seriatim"), None)


def environment(container):
    return {entry["name"]: entry for entry in container["env"]}


def ports(container):
    return {port["containerPort"] for port in container.get("ports", [])}


def seconds(text):
    match = re.fullmatch(r"(\d+)s", text)
    assert match, f"{text} is a number of seconds"
    return int(match[1])


def manifest():
    """The plain manifest: the chart's, without what is Helm's."""
    values = load(TOP / "examples/kubernetes/values.yaml")
    rendered = texts(values, name="seriatim", namespace="default")
    parts = []
    for path, text in sorted(rendered.items()):
        if not path.endswith(".yaml") or "/tests/" in path:
            continue
        lines = [
            line.rstrip()
            for line in text.strip().splitlines()
            if not re.match(r"\s*(namespace: default|helm\.sh/chart: .*|app\.kubernetes\.io/managed-by: .*)$", line)
        ]
        if lines:
            parts.append("\n".join(lines))
    head = (
        "# An agent behind Seriatim, for kubectl: change the agent's image and port, the address of Redis\n"
        "# (SERIATIM__STORE__URL) and the routes in the ConfigMap, then `kubectl apply -f seriatim.yaml`.\n"
        "# The chart made this file; docs/kubernetes.md explains it.\n"
    )
    return head + "\n---\n".join(parts) + "\n"


class Chart(unittest.TestCase):
    maxDiff = None

    def validate(self, documents, version):
        for document in documents:
            name = f"{document['kind']} {document['metadata']['name']}"
            if document["kind"] in CUSTOM:
                self.assertEqual(document["apiVersion"], "monitoring.coreos.com/v1", name)
                self.assertLessEqual(document.keys(), {"apiVersion", "kind", "metadata", "spec"}, name)
                jsonschema.validate(document["spec"], CUSTOM[document["kind"]])
            elif document["kind"] == "ScaledObject":
                # The models of KEDA's own definition skip what they don't know.
                known = ScaledObject.model_validate(document).model_dump(by_alias=True, exclude_unset=True)
                self.assertEqual(known, document, f"KEDA knows every field of {name}")
            else:
                kubernetes_validate.validate(document, version, strict=True)
            self.assertRegex(document["metadata"]["name"], r"^[a-z0-9]([-a-z0-9.]{0,61}[a-z0-9])?$", "a name is a DNS label")
            labels = document["metadata"]["labels"]
            for label in ("name", "instance", "version", "managed-by"):
                self.assertIn(f"app.kubernetes.io/{label}", labels, f"{name} has the usual labels")

    def test_it_is_linted_strictly_for_every_set_of_values(self):
        for name, values, version in all_sets():
            with self.subTest(name):
                report = helm.lint(str(CHART), values, strict=True, kube_version=f"v{version}.0")
                worse = [message for message in report["messages"] if message["severity"] >= 2]
                self.assertEqual((report["errors"], worse), ([], []), "nothing but information")

    def test_every_document_is_one_that_kubernetes_takes(self):
        kinds = set()
        for name, values, version in all_sets():
            with self.subTest(name):
                rendered = render(values)
                self.validate(rendered, version)
                kinds.update(document["kind"] for document in rendered)
        self.assertEqual(
            kinds,
            {"Deployment", "Service", "ConfigMap", "ServiceAccount", "PodDisruptionBudget", "NetworkPolicy"}
            | {"HorizontalPodAutoscaler", "ScaledObject", "ServiceMonitor", "PrometheusRule", "Pod"},
            "each kind that the chart has is in some set",
        )

    def test_what_is_wrong_is_refused(self):
        for case in load(Path(__file__).parent / "refused.yaml"):
            with self.subTest(str(case["values"])):
                with self.assertRaises(helm.HelmError) as refused:
                    texts(case["values"])
                self.assertIn(case["says"], str(refused.exception), "and it is said why")

    def test_the_parts_of_a_pod_agree(self):
        for name, values, _ in all_sets():
            with self.subTest(name):
                rendered = render(values)
                deployment = one(rendered, "Deployment")
                self.agree(rendered, deployment, values)
                labels = deployment["spec"]["template"]["metadata"]["labels"]
                tested = one(rendered, "Pod")["metadata"]["labels"] if values.get("admin", {}).get("expose", True) else {}
                for document in rendered:
                    selector = document["spec"].get("selector") or document["spec"].get("podSelector") if "spec" in document else None
                    if selector and document["kind"] != "ServiceMonitor":
                        selector = selector.get("matchLabels", selector)
                        if selector != values.get("networkPolicy", {}).get("agentSelector"):
                            self.assertLessEqual(selector.items(), labels.items(), f"{document['kind']} finds the pods")
                        self.assertFalse(selector.items() <= tested.items(), f"{document['kind']} doesn't find the pod of helm test")

    def agree(self, rendered, workload, values):
        accounts = {d["metadata"]["name"] for d in rendered if d["kind"] == "ServiceAccount"} | {"default"}
        for document in rendered:
            if document["kind"] in ("Pod", "Deployment"):
                named = (document["spec"] if document["kind"] == "Pod" else pod_of(document))["serviceAccountName"]
                self.assertIn(named, accounts, f"the account of the {document['kind']} exists")
        pod = pod_of(workload)
        seriatim, agent = seriatim_of(pod), agent_of(pod)
        # The order of things at the end.
        hook = seriatim["lifecycle"]["preStop"]["exec"]["command"]
        self.assertEqual(hook[:3], ["/seriatim", "drain", "--after"], "the hook has it drain")
        variables = environment(seriatim)
        drained = seconds(hook[3]) + seconds(variables["SERIATIM__TIMEOUTS__DRAIN"]["value"])
        shutdown = values.get("shutdown", {})
        after = shutdown.get("releaseSeconds", 6)
        if agent:
            hook = agent["lifecycle"]["preStop"]
            asleep = hook["sleep"]["seconds"] if "sleep" in hook else int(hook["exec"]["command"][1])
            self.assertGreaterEqual(asleep, drained, "the agent lives while turns end")
            after = max(shutdown.get("agentSeconds", 10), after)
        self.assertGreaterEqual(pod["terminationGracePeriodSeconds"], drained + after, "the grace period is long enough for running turns and for the agent")
        # A native sidecar is one by this alone.
        is_native = seriatim in pod.get("initContainers", [])
        self.assertEqual(seriatim.get("restartPolicy"), "Always" if is_native else None, "a sidecar, or a container")
        # Ports.
        listen, admin = (variables[f"SERIATIM__{key}"]["value"] for key in ("LISTEN", "ADMIN__LISTEN"))
        listen, (admin_host, admin) = int(listen.rpartition(":")[2]), admin.rsplit(":", 1)
        self.assertIn(listen, ports(seriatim), "it listens on the port that it names")
        upstream = variables["SERIATIM__UPSTREAM"]["value"]
        if agent:
            agents = int(upstream.rpartition(":")[2])
            self.assertIn(agents, ports(agent), "and asks the agent on the agent's")
        else:
            agents = None
            self.assertEqual(upstream, values["upstream"], "and asks the agent's Service")
        self.assertEqual(one_port(rendered), listen, "the Service goes to Seriatim")
        exposed = admin_host != "127.0.0.1"
        for probe, path in (("startupProbe", "livez"), ("livenessProbe", "livez"), ("readinessProbe", "readyz")):
            if exposed:
                self.assertEqual(seriatim[probe]["httpGet"], {"path": f"/{path}", "port": int(admin)}, probe)
            else:
                self.assertEqual(seriatim[probe]["exec"]["command"][:2], ["/seriatim", "health"], probe)
        policies = [d for d in rendered if d["kind"] == "NetworkPolicy" and not d["metadata"]["name"].endswith(("-test", "-agent"))]
        for policy in policies:
            open_ports = {port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]}
            self.assertIn(listen, open_ports, "clients reach Seriatim")
            self.assertNotIn(agents, open_ports, "no policy opens the agent's port")
        # Volumes.
        volumes = {volume["name"] for volume in pod["volumes"]}
        for container in (seriatim, agent or seriatim):
            mounts = container.get("volumeMounts", [])
            self.assertLessEqual({mount["name"] for mount in mounts}, volumes, "what is mounted is there")
        for mount in seriatim["volumeMounts"]:
            self.assertNotIn("subPath", mount, "a file that is mounted by itself never changes")
        # Rights.
        self.assertIs(pod["enableServiceLinks"], False, "no variables of Services")
        context = seriatim["securityContext"]
        self.assertEqual((context["runAsUser"], context["runAsNonRoot"]), (65532, True), "the program runs as a user without rights")
        self.assertTrue(context["readOnlyRootFilesystem"], "the program writes no files")
        self.assertFalse(context["allowPrivilegeEscalation"], "the program can't gain rights")
        self.assertEqual(context["capabilities"], {"drop": ["ALL"]}, "the program needs no capabilities")
        names = [entry["name"] for entry in seriatim["env"]]
        self.assertEqual(len(names), len(set(names)), "no variable is set twice")
        self.assertEqual(variables["SERIATIM__STORE__INSTANCE"]["value"], "$(POD_NAMESPACE).$(POD_NAME)", "no two pods of a cluster share a name")
        for name, field in (("POD_NAMESPACE", "metadata.namespace"), ("POD_NAME", "metadata.name")):
            self.assertEqual(variables[name]["valueFrom"]["fieldRef"]["fieldPath"], field, "the name is the pod's")
            self.assertLess(names.index(name), names.index("SERIATIM__STORE__INSTANCE"), "a variable knows only those before it")

    def test_the_program_takes_the_configuration_that_a_pod_gets(self):
        for name, values, _ in all_sets():
            with self.subTest(name):
                rendered = render(values)
                if "existingConfigMap" in values:
                    continue
                shown = self.check(seriatim_of(pod_of(one(rendered, "Deployment"))), one(rendered, "ConfigMap", "-config"))
                self.assertIn("[[routes]]", shown, "its routes are in force")
                self.assertIn('instance = "staging.demo-seriatim-5d8-x7k"', shown, "and what the pod decides")
                store = values.get("store", {})
                if "prefix" in store:
                    self.assertIn(f'prefix = "{store["prefix"]}"', shown, "and the values")
                if "unreadyAfterSeconds" in store:
                    self.assertIn(f'unready_after = "{store["unreadyAfterSeconds"]}s"', shown, "and the values")
                self.assertNotIn("geheim", shown, "and no secret is shown")

    def check(self, seriatim, config_map):
        with tempfile.TemporaryDirectory() as folder:
            folder = Path(folder)
            (folder / "config.toml").write_text(config_map["data"]["config.toml"])
            for mount, file in (("store", "password"), ("admin", "token")):
                (folder / mount).mkdir()
                (folder / mount / file).write_text("geheim-geheim-geheim-geheim-geheim\n")
            (folder / "tls").mkdir()
            for file, mounted in (("cert.pem", "tls.crt"), ("key.pem", "tls.key")):
                shutil.copy(TOP / "tests/config/tls" / file, folder / "tls" / mounted)
            variables = {}
            for entry in seriatim["env"]:
                value = entry.get("value", "redis://:geheim@redis:6379/0")
                if "fieldRef" in entry.get("valueFrom", {}):
                    value = PODS[entry["valueFrom"]["fieldRef"]["fieldPath"]]
                # As the kubelet does, a variable is replaced that stands before.
                value = re.sub(r"\$\((\w+)\)", lambda named: variables[named[1]], value)
                variables[entry["name"]] = value.replace("/run/secrets/seriatim", str(folder))
            ran = subprocess.run(
                [BINARY, "check", "--config", str(folder / "config.toml")],
                env=os.environ | variables,
                capture_output=True,
                text=True,
            )
            self.assertEqual(ran.returncode, 0, ran.stderr)
            return ran.stdout

    def test_every_preset_has_a_file_of_values(self):
        listed = subprocess.run([BINARY, "presets", "--json"], capture_output=True, text=True, check=True).stdout
        presets = {preset["name"]: preset for preset in map(json.loads, listed.splitlines())}
        files = {file.stem: load(file) for file in (CHART / "presets").glob("*.yaml")}
        self.assertGreater(len(presets), 10, "the program lists its presets")
        self.assertEqual(files.keys(), presets.keys(), "none is missing, and none is too many")
        for name, values in files.items():
            self.assertIn(f'preset = "{name}"', values["config"], "a file is of the preset that it is called after")
            head = (CHART / "presets" / f"{name}.yaml").read_text().lower()
            for text in (presets[name]["title"], presets[name]["note"] or ""):
                self.assertIn(text.lower(), head, "a file begins with what the preset is for, and with its note")

    def test_each_mode_is_what_it_is_called(self):
        def kind(values):
            pod = pod_of(one(render({"agent": {"image": "a"}} | values), "Deployment"))
            hook = (agent_of(pod) or {}).get("lifecycle", {}).get("preStop", {})
            return "native" if "initContainers" in pod else "container", next(iter(hook), None)

        cases = [
            ({"kubeVersion": "1.29"}, ("native", "exec")),
            ({"kubeVersion": "v1.30.1-gke.5"}, ("native", "sleep")),
            ({"kubeVersion": "1.32", "sidecar": {"mode": "container"}}, ("container", "sleep")),
            ({"kubeVersion": "1.32", "shutdown": {"agentPreStop": "none"}}, ("native", None)),
            ({"kubeVersion": "1.32", "mode": "gateway", "upstream": "http://a", "agent": {}}, ("container", None)),
        ]
        for values, expected in cases:
            with self.subTest(str(values)):
                self.assertEqual(kind(values), expected, "the hook is one that the cluster supports, unless a value says which")

    def test_null_means_the_default_or_is_refused(self):
        defaults = load(CHART / "values.yaml")
        schema = json.loads((CHART / "values.schema.json").read_text())
        # Null removes what the chart has.
        removable = {"sidecar.resources", "podSecurityContext", "networkPolicy.adminFrom", "dashboard.labels", "service.appProtocol"}
        define = r'define "seriatim.sidecarOnly" -}}\n(.*?){{- end'
        sidecar_only = yaml.safe_load(re.search(define, (CHART / "templates/_check.tpl").read_text(), re.DOTALL)[1])

        def entries(values, properties, above=()):
            for key, value in values.items():
                path, below = (*above, key), properties[key]
                yield path, value, "null" in below.get("type", ())
                if "properties" in below:
                    yield from entries(value, below["properties"], path)

        def outcome(base, path):
            values = copy.deepcopy(base)
            parent = values
            for key in path[:-1]:
                parent = parent.setdefault(key, {})
            parent[path[-1]] = None
            try:
                return texts(values)
            except helm.HelmError as refused:
                return str(refused)

        redis = {"store": {"url": "redis://r:1"}}
        for needed, base in (
            ("agent.image", redis | {"agent": {"image": "a"}}),
            ("selector", redis | {"agent": {"enabled": False}, "selector": {"app": "own"}}),
            ("upstream", redis | {"mode": "gateway", "upstream": "http://a"}),
        ):
            default = texts(base)
            for path, value, may_be_null in entries(defaults, schema["properties"]):
                name = ".".join(path)
                if name == needed:
                    continue
                with self.subTest(f"{name} with {base}"):
                    if name in sidecar_only:
                        self.assertEqual(value, sidecar_only[name], "the check knows the default")
                    got = outcome(base, path)
                    if name in removable:
                        self.assertIsInstance(got, dict, "it is rendered")
                    elif may_be_null or value in ("", [], {}) or (needed == "upstream" and name in sidecar_only):
                        self.assertTrue(got == default, f"it is as without the value: {got if isinstance(got, str) else ''}")
                    else:
                        self.assertIn(f"missing property '{path[-1]}'", got if isinstance(got, str) else "rendered", "it is refused")

        # With everything that looks at who creates the pods.
        everything = load(VALUES / "gateway-everything.yaml")
        for name in sidecar_only:
            with self.subTest(f"{name} with everything of a gateway"):
                self.assertTrue(outcome(everything, name.split(".")) == texts(everything), "it is as without the value")

    def test_a_variable_that_the_chart_sets_is_refused(self):
        variables = {}
        for _, values, _ in all_sets():
            own = {entry["name"] for entry in values.get("sidecar", {}).get("env", [])}
            for name in environment(seriatim_of(pod_of(one(render(values), "Deployment")))).keys() - own:
                variables[name] = values
        for name, values in variables.items():
            with self.subTest(name), self.assertRaisesRegex(helm.HelmError, f"sidecar.env: .*{name}"):
                texts(values | {"sidecar": values.get("sidecar", {}) | {"env": [{"name": name, "value": "x"}]}})

    def test_a_gateway_alone_may_connect_to_the_agent(self):
        rendered = render(load(VALUES / "gateway.yaml"))
        policy = one(rendered, "NetworkPolicy", "-agent")["spec"]
        self.assertEqual(policy["podSelector"], {"matchLabels": {"app": "agent"}}, "it is about the agent's pods")
        ((rule,),) = [policy["ingress"]]
        ((peer,),) = [rule["from"]]
        labels = one(rendered, "Deployment")["spec"]["template"]["metadata"]["labels"]
        self.assertLessEqual(peer["podSelector"]["matchLabels"].items(), labels.items(), "the gateway's pods come through")
        self.assertEqual(peer.keys(), {"podSelector"}, "and nobody else does")

    def test_a_file_of_a_preset_serves_a_gateway(self):
        for file in sorted((CHART / "presets").glob("*.yaml")):
            with self.subTest(file.stem):
                values = load(file) | {"mode": "gateway", "upstream": "http://agent.chat.svc:8000"}
                values["agent"]["port"] = None
                rendered = render(values)
                shown = self.check(seriatim_of(pod_of(one(rendered, "Deployment"))), one(rendered, "ConfigMap", "-config"))
                self.assertIn("upstream = \"http://agent.chat.svc:8000\"", shown, "with the port that upstream names")

    def test_what_scales_the_pods_says_how_many_there_are(self):
        documented = (TOP / "docs/metrics.md").read_text()
        for name, values, _ in all_sets():
            rendered = render(values)
            scalers = {d["kind"]: d["spec"] for d in rendered if d["kind"] in ("HorizontalPodAutoscaler", "ScaledObject")}
            with self.subTest(name):
                deployment = one(rendered, "Deployment")
                targets = [spec["scaleTargetRef"]["name"] for spec in scalers.values()]
                self.assertEqual(len(targets), len(set(targets)), "no workload has two of them")
                own = deployment["metadata"]["name"] in targets
                self.assertNotEqual(own, "replicas" in deployment["spec"], "a Deployment has a number, or something that scales it")
                shutdown = values.get("shutdown", {})
                drains = shutdown.get("endpointSeconds", 5) + shutdown.get("drainSeconds", 30)
                for kind, spec in scalers.items():
                    config = spec if kind == "HorizontalPodAutoscaler" else spec["advanced"]["horizontalPodAutoscalerConfig"]
                    if "behavior" in values.get("autoscaling" if config is spec else "keda", {}):
                        continue
                    (policy,) = config["behavior"]["scaleDown"]["policies"]
                    self.assertEqual((policy["type"], policy["value"]), ("Pods", 1), "one pod leaves at a time")
                    self.assertGreaterEqual(policy["periodSeconds"], drains, "and has drained before the next one does")
                for trigger in scalers.get("ScaledObject", {}).get("triggers", []):
                    if trigger["type"] != "prometheus" or trigger in values["keda"].get("triggers", []):
                        continue
                    metadata = trigger["metadata"]
                    known = {"serverAddress", "query", "threshold", "ignoreNullValues"}
                    self.assertEqual(metadata.keys(), known, "what this trigger of KEDA knows")
                    metric, namespace, service = re.fullmatch(
                        r'sum\((\w+)\{namespace="([^"]+)",service="([^"]+)"\}\)', metadata["query"]
                    ).groups()
                    self.assertIn(f"| `{metric}` | gauge |", documented, "it asks for a metric that there is")
                    scraped = one(rendered, "Service", "-admin")["metadata"]
                    self.assertEqual((namespace, service), (scraped["namespace"], scraped["name"]), "of these pods")

    def test_triggers_of_the_users_own_need_no_prometheus(self):
        trigger = {"type": "cron", "metadata": {"timezone": "UTC", "start": "0 8 * * *", "end": "0 20 * * *", "desiredReplicas": "5"}}
        values = load(VALUES / "least.yaml") | {
            "store": {"url": "redis://r:1"},
            "admin": {"expose": False},
            "keda": {"enabled": True, "heldPerReplica": None, "triggers": [trigger]},
        }
        scaled = one(render(values), "ScaledObject")
        self.validate([scaled], VERSIONS[-1])
        self.assertEqual(scaled["spec"]["triggers"], [trigger], "KEDA asks nothing else")

    def test_with_locks_in_memory_two_pods_never_run_at_once(self):
        strategy = lambda values: one(render({"agent": {"image": "a"}} | values), "Deployment")["spec"]["strategy"]["type"]
        self.assertEqual(strategy({}), "Recreate", "the old pod ends first")
        self.assertEqual(strategy({"store": {"url": "redis://r:1"}}), "RollingUpdate", "with Redis, the new one comes first")

    def test_rules_and_dashboard_are_as_in_their_files(self):
        rendered = render(load(VALUES / "monitoring.yaml"))
        rules = load(CHART / "files/alerts.yaml")
        self.assertEqual(one(rendered, "PrometheusRule")["spec"], rules, "nothing of them is taken for a template")
        data = one(rendered, "ConfigMap", "-dashboard")["data"]
        (name, text), = data.items()
        self.assertTrue(name.endswith(".json"), "Grafana's sidecar looks for such names")
        self.assertEqual(json.loads(text), json.loads((CHART / "files/dashboard.json").read_text()), "nothing of the dashboard is taken for a template")

    def test_what_is_scraped_is_the_admin_port_of_the_service_that_has_it(self):
        rendered = render(load(VALUES / "monitoring.yaml"))
        monitor, service = one(rendered, "ServiceMonitor")["spec"], one(rendered, "Service", "-admin")
        labels = service["metadata"]["labels"]
        self.assertLessEqual(monitor["selector"]["matchLabels"].items(), labels.items(), "it is found")
        clients = [d for d in rendered if d["kind"] == "Service" and d is not service]
        for other in clients:
            found = monitor["selector"]["matchLabels"].items() <= other["metadata"]["labels"].items()
            self.assertFalse(found, "and the clients' isn't")
        names = {port["name"]: port["targetPort"] for port in service["spec"]["ports"]}
        port = names[monitor["endpoints"][0]["port"]]
        self.assertIn(port, ports(seriatim_of(pod_of(one(rendered, "Deployment")))), "at a port of the pod's")

    def test_what_helm_says_after_installing_names_the_service_and_what_is_not_protected(self):
        def notes(values):
            (text,) = [text for path, text in texts({"agent": {"image": "a"}} | values).items() if path.endswith("NOTES.txt")]
            return text

        self.assertIn("http://demo-seriatim.agents.svc:80", notes({}), "where clients go")
        self.assertIn("protects one replica only", notes({}), "and that the locks are the pod's own")
        elsewhere = notes({"store": {"url": "redis://r:1"}})
        self.assertNotIn("protects one replica only", elsewhere, "which they aren't with Redis")
        self.assertNotIn("bypass Seriatim", elsewhere, "and no request bypasses Seriatim")
        self.assertIn("bypass Seriatim", notes({"networkPolicy": {"enabled": False}}), "unless no policy prevents it")
        gateway = {"agent": {}, "mode": "gateway", "upstream": "http://agent.chat.svc:8000"}
        self.assertIn("in front of http://agent.chat.svc:8000", notes(gateway), "a gateway names its Service")
        self.assertIn("http://agent.chat.svc:8000 directly takes no lock", notes(gateway), "which is open to others")
        protected = gateway | {"upstream": "http://agent.agents.svc:8000", "networkPolicy": {"agentSelector": {"app": "agent"}}}
        self.assertNotIn("takes no lock", notes(protected), "unless a policy is for the agent's pods")

    def test_what_the_page_of_the_gateway_shows_is_valid(self):
        blocks = re.findall(r"^```yaml\n(.*?)^```$", (TOP / "docs/gateway.md").read_text(), re.MULTILINE | re.DOTALL)
        kinds = []
        for block in blocks:
            block = yaml.load(block, UniqueKeys)
            with self.subTest(str(block)):
                if "rules" in block:
                    # Values of prometheus-adapter, whose names the HorizontalPodAutoscalers use.
                    (rule,) = block["rules"]["custom"]
                    self.assertIn("seriatim_locks_held{", rule["seriesQuery"])
                    continue
                manifests = [block]
                if "apiVersion" not in block:
                    base = {"mode": "gateway", "upstream": "http://agent:8000"}
                    manifests = render(block if "mode" in block else base | block, name="chat", namespace="chat")
                kinds += [manifest["kind"] for manifest in manifests]
                for manifest in manifests:
                    if manifest["kind"] not in {*CUSTOM, "ScaledObject"}:
                        kubernetes_validate.validate(manifest, VERSIONS[-1], strict=True)
        tested = (TOP / "docs/kubernetes.md").read_text()
        self.assertIn("Kubernetes {} and {}".format(*VERSIONS), tested, "the page of the sidecar names the versions")
        self.assertEqual((kinds.count("HorizontalPodAutoscaler"), kinds.count("ScaledObject")), (3, 1), "each recipe is there")

    def test_the_readme_of_the_chart_works_without_the_repository(self):
        readme = (CHART / "README.md").read_text()
        for link in re.findall(r"\]\(([^)]+)\)", readme):
            page = re.fullmatch(r"https://seriatim\.example\.com/([a-z-]+)\.html", link)
            self.assertTrue(page and (TOP / f"docs/{page[1]}.md").exists(), f"a page of the site: {link}")
        charts = re.findall(r"^helm install \S+ (\S+)", readme, re.MULTILINE)
        self.assertEqual(charts, ["oci://registry.example.com/charts/seriatim"], "the chart comes from the registry")
        self.assertNotIn("helm/seriatim", readme, "no path of the repository")

    def test_another_chart_includes_the_sidecar_in_its_own_pod(self):
        with tempfile.TemporaryDirectory() as folder:
            chart = Path(folder) / "own-chart"
            shutil.copytree(OWN_CHART, chart)
            shutil.copytree(CHART, chart / "charts/seriatim")
            for version in VERSIONS:
                with self.subTest(version):
                    values = {"seriatim": {"kubeVersion": version}}
                    report = helm.lint(str(chart), values, strict=True, with_subcharts=True)
                    self.assertEqual(report["errors"], [], "linted with what it depends on")
                    rendered = render(values, chart=chart)
                    workload = one(rendered, "StatefulSet")
                    self.validate([d for d in rendered if d is not workload], version)
                    kubernetes_validate.validate(workload, version, strict=True)
                    self.assertEqual([d for d in rendered if d["kind"] == "Deployment"], [], "the pod is its own")
                    self.agree(rendered, workload, {})
                    labels = workload["spec"]["template"]["metadata"]["labels"]
                    for document in rendered:
                        if document["kind"] == "Service":
                            self.assertLessEqual(document["spec"]["selector"].items(), labels.items(), "Services find it")
                    config_map = one(rendered, "ConfigMap", "-config")
                    mounted = [v["configMap"]["name"] for v in pod_of(workload)["volumes"] if "configMap" in v]
                    self.assertEqual(mounted, [config_map["metadata"]["name"]], "it has the configuration of this chart")
                    self.assertIn('name = "langgraph"', self.check(seriatim_of(pod_of(workload)), config_map), "its own routes")

    def test_the_plain_manifest_is_up_to_date(self):
        self.assertEqual(
            MANIFEST.read_text(),
            manifest(),
            "helm/seriatim.yaml is what the chart gives: `.ci/chart --manifest` writes it anew",
        )
        for document in yaml.load_all(MANIFEST.read_text(), UniqueKeys):
            for version in VERSIONS:
                kubernetes_validate.validate(document, version, strict=True)

    def test_schema_values_and_comments_go_together(self):
        def compare(schema, values, path):
            known = set(schema["properties"]) - {"global"}
            self.assertEqual(known, set(values), f"the schema and values.yaml have the same keys {path}")
            self.assertIs(schema["additionalProperties"], False, f"a misspelt key is refused {path}")
            for key, below in schema["properties"].items():
                if "properties" in below and key != "global":
                    compare(below, values[key], f"{path}.{key}")

        compare(json.loads((CHART / "values.schema.json").read_text()), load(CHART / "values.yaml"), "")
        # Lines that open a value are below a comment, or beside values that share one with them.
        lines, commented = (CHART / "values.yaml").read_text().splitlines(), False
        for line in lines:
            if re.match(r"[a-zA-Z]", line) and not commented:
                self.fail(f"values.yaml says what this is: {line}")
            commented = bool(line.strip()) and (commented or line.lstrip().startswith("#"))


def one_port(rendered):
    services = [d for d in rendered if d["kind"] == "Service" and not d["metadata"]["name"].endswith(("-admin", "-test"))]
    (service,) = services
    (port,) = service["spec"]["ports"]
    return port["targetPort"]


if __name__ == "__main__":
    if sys.argv[1:] == ["--manifest"]:
        MANIFEST.write_text(manifest())
    else:
        unittest.main()
