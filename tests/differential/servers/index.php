<?php
// PHP on its own server, as a small application without a framework.
error_reporting(0);
ini_set('display_errors', '0');

// Notes a turn, past the proxy, and gives its answer. What is falsy is no session, as in `?:`.
function ran(string $route, mixed $session, array $more = []): void
{
    $text = is_string($session) ? $session : json_encode($session);
    $turn = ['case' => $_SERVER['HTTP_X_CASE'] ?? null, 'route' => $route, 'session' => $session ? $text : null] + $more;
    file_put_contents(getenv('RECORDS'), json_encode($turn, JSON_INVALID_UTF8_SUBSTITUTE) . "\n", FILE_APPEND);
    header('content-type: application/json');
    echo json_encode(['ran' => true, 'route' => $route]);
}

function member(string $name = 'session_id'): mixed
{
    $body = json_decode(file_get_contents('php://input'), true);
    return is_array($body) ? $body[$name] ?? null : null;
}

function kind(): string
{
    return trim(explode(';', $_SERVER['CONTENT_TYPE'] ?? '')[0]);
}

// As a UUID; null if it is none.
function uuid(mixed $text): ?string
{
    return preg_match('/^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i', (string) $text) ? strtolower($text) : null;
}

function header_of(string $name): ?string
{
    return $_SERVER['HTTP_' . strtoupper(strtr($name, '-', '_'))] ?? null;
}

$path = rawurldecode(parse_url($_SERVER['REQUEST_URI'], PHP_URL_PATH) ?: $_SERVER['REQUEST_URI']);
$method = $_SERVER['REQUEST_METHOD'];
$routes = [
    'POST #^/(chat|both)$#' => fn ($found) => ran($found[1], member() ?? $_POST['session_id'] ?? null),
    'POST #^/json$#' => fn () => ran('json', member()),
    'POST #^/form$#' => fn () => ran('form', $_POST['session_id'] ?? null),
    'GET #^/query$#' => fn () => ran('query', $_GET['session_id'] ?? null),
    'PUT #^/put$#' => fn () => ran('put', $_GET['session_id'] ?? null),
    'POST #^/header$#' => fn () => ran('header', header_of('x-session-id'), ['user' => header_of('x-user-id'), 'forwarded' => header_of('x-forwarded-for')]),
    'POST #^/cookie$#' => fn () => ran('cookie', $_COOKIE['session_id'] ?? null),
    'ANY #^/thread/([^/]+)$#' => fn ($found) => ran('thread', $found[1]),
    'POST #^/path/([^/]+)/runs$#' => fn ($found) => ran('runs', $found[1]),
    'POST #^/mode/([^/]+)$#' => fn ($found) => header_of('x-mode') === 'chat' && ran('mode', $found[1]),
    'POST #^/halt/([^/]+)$#' => fn ($found) => header_of('x-mode') !== 'stop' && ran('halt', $found[1]),
    'POST #^/kind/([^/]+)$#' => fn ($found) => kind() === 'application/json' && ran('kind', $found[1]),
    'POST #^/action$#' => fn () => (member('action') ?? $_POST['action'] ?? null) === 'chat' && ran('action', member() ?? $_POST['session_id'] ?? null),
    'POST #^/command$#' => fn () => member('action') !== 'stop' && ran('command', member()),
    'POST #^/submit$#' => fn () => ($_POST['action'] ?? null) === 'chat' && ran('submit', $_POST['session_id'] ?? null),
    'POST #^/uuid$#' => fn () => ran('uuid', uuid(member())),
    'GET #^/uuid/([^/]+)$#' => fn ($found) => ran('uuid-path', uuid($found[1])),
    'GET #^/uuidq$#' => fn () => ran('uuid-query', uuid($_GET['session_id'] ?? null)),
    'POST #^/int$#' => fn () => ran('int', (string) (int) member()),
    'GET #^/int/([^/]+)$#' => fn ($found) => ran('int-path', (string) (int) $found[1]),
    'GET #^/intq$#' => fn () => ran('int-query', (string) (int) ($_GET['session_id'] ?? null)),
    'GET #^/lower$#' => fn () => ran('lower', strtolower($_GET['session_id'] ?? '')),
];
foreach ($routes as $route => $handler) {
    [$wanted, $pattern] = explode(' ', $route, 2);
    if (($wanted === $method || $wanted === 'ANY' || ($wanted === 'GET' && $method === 'HEAD')) && preg_match($pattern, $path, $found)) {
        $handler($found);
        return;
    }
}
http_response_code(404);
